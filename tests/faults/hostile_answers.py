"""Answers made by hand to hurt a grader: 300 of them, each kind in several sizes and dresses."""

TOWERS = ["9^9^9^9", "9**9**9**9", "9^{9^{9^{9}}}", "2^{2^{2^{2^{2^{2}}}}}", "10^{10^{10}}", "(10^{10})^{10^{10}}"]
FACTORIALS = [
    "99999!",
    "(99999!)!",
    "3!!!!!!",
    "\\binom{10^9}{10^8}",
    "\\prod_{n=1}^{10^9}n",
    "\\sum_{n=1}^{10^{12}}n^n",
]
GROWTH = [
    "(1+x)^{100000}",
    "(a+b+c+d)^{5000}",
    "\\frac{1}{0}",
    "0^0",
    "\\int{e^{x^{x^x}}}dx",
    "\\lim_{x\\to0}x^{x^{x}}",
]
SYMBOLS = [
    "\\infty",
    "-\\infty",
    "nan",
    "NaN",
    "inf",
    "1e999999999",
    "1e-999999999",
    "0x7fffffff",
    "1_000",
    "٣",
    "½",
    "³",
]
MARKS = ["(", "[", "{", "\\frac{", "\\sqrt{", "\\boxed{", "$", "\\left("]
NESTING = [mark * n for mark in MARKS for n in (10, 1000, 3000)]
PAIRS = (("(", ")"), ("{", "}"), ("\\sqrt{", "}"), ("\\boxed{", "}"))
CLOSED = [a * n + "1" + b * n for a, b in PAIRS for n in (50, 300, 900)]
REPEATED = ("9", "1,", "-", "+1", "1/", "\\frac", "x=", "=", " ", "a ", "\n", "1e", ".", "$1$ ")
LONG = [text * n for text in REPEATED for n in (60, 500, 20_000)]
REGEX = [
    a * 3000 + b for a in ("1,111", "0 ", "\\text{", "\\boxed{1", "1 1/", "{ ", "e+", "((a") for b in ("", "!", "X")
]
CODE = [
    *("__import__('os').system('touch owned')", "().__class__.__bases__[0].__subclasses__()", "exec('1')"),
    *("eval(input())", "open('owned', 'w')", "lambda: 0", "os.kill(os.getpid(), 9)", "import os; os.abort()"),
    *("[x for x in iter(int, 1)]", "print(open('/etc/passwd').read())", "globals()", "breakpoint()", "exit()"),
    *("Symbol('x').__class__", "S('__import__(\"os\")')", "sympify('1')", "\\input{/etc/passwd}", "quit()"),
    *(
        "\\write18{touch owned}",
        "<script>alert(1)</script>",
        "{{7*7}}",
        "${7*7}",
        "%n%s%x",
        "'; DROP TABLE answers; --",
    ),
    *('{"value": 1}', '{"error": 1}', '1"}\n{"value": 1}\n', "\n{}\n"),
]
UNICODE = [
    *("\x00", "\x00" * 500, "\x1b[2J", "\u202e3", "\ufeff3", "\u200b" * 999, "\U0001f642" * 999, "e\u0301" * 999),
    *("\U0010ffff", "\uff13", "\ud7ff", "\x85", "\u2028"),
]
LINES = ["\n" * 5000, "3\r\n" * 500, '\\"' * 500, "\\" * 5000, "\\u0000", "\\n", "a\vb\fc", "\t" * 999]
LATEX = [
    *("\\begin{pmatrix}" * 300, "\\begin{cases}1\\end{cases}", "\\def\\a{\\a\\a}\\a", "\\loop\\repeat", "\\sqrt[0]{1}"),
    *("\\frac{1}{\\frac{1}{" * 300, "x_{" * 500, "\\text{\\text{" * 300, "\\mathrm{d}" * 500, "\\begin{array}{c}" * 99),
    *("\\{1,2,3" * 300, "(0,1)\\cup" * 500, "[0,1)" * 500, "x=1,x=2," * 300, "1\\times" * 999, "\\cdot" * 999),
]
MATRICES = ["\\begin{pmatrix}" + "&".join(["1"] * n) + "\\end{pmatrix}" for n in (3, 300, 3000)]
SETS = ["\\{" + ",".join(str(i) for i in range(n)) + "\\}" for n in (3, 300, 3000)]
CHAINS = [mark.join(["x"] * n) for mark in ("=", "<", "+", "^") for n in (2, 99, 999)]
PLAIN = (*TOWERS, *FACTORIALS, *GROWTH, *SYMBOLS)
DRESSED = [dress.format(text) for text in PLAIN for dress in ("${}$", "\\boxed{{{}}}", "The answer is {}.")]
ALL = [*PLAIN, *DRESSED, *NESTING, *CLOSED, *LONG, *REGEX, *CODE, *UNICODE, *LINES, *LATEX, *MATRICES, *SETS, *CHAINS]
HOSTILE = [text[:100_000] for text in dict.fromkeys(ALL)]
