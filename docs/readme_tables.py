"""Fill the generated parts of README.md: `python docs/readme_tables.py`. A test holds the file to what this writes."""

import pathlib
import re

from jaxrl_llm import recipe_table, spec, tasks
from jaxrl_llm.glossary import glossary_markdown

README = pathlib.Path(__file__).parents[1] / "README.md"
ANSWERS = README.parent / "experiments" / "results"


def function_table(module) -> str:
    """Public functions of a module: how the command line spells them, and the first line of what they are."""
    rows = ["| spelling | what it is |", "|---|---|"]
    for name, function in spec.public_functions(module).items():
        first = (function.__doc__ or "").strip().splitlines()[0].replace("|", "\\|")
        rows.append(f"| `{spec.signature(name, function)}` | {first} |")
    return "\n".join(rows)


def answer_table() -> str:
    """Every committed answer: its experiment, what was asked, and the verdict."""
    rows = ["| experiment | question | verdict |", "|---|---|---|"]
    for path in sorted(ANSWERS.glob("*/answer.md")):
        text = path.read_text(encoding="utf-8")
        question, verdict = text.partition("\n")[0].removeprefix("# "), re.search(r"\*\*Verdict: (\w+)\*\*", text)
        link = path.relative_to(README.parent).as_posix()
        rows.append(f"| [{path.parent.name}]({link}) | {question} | {verdict.group(1)} |")
    return "\n".join(rows)


def filled(text: str) -> str:
    """The README with every part between `<!-- NAME -->` and `<!-- end NAME -->` made anew."""
    parts = {
        "recipes": recipe_table.markdown(),
        "tasks": function_table(tasks),
        "answers": answer_table(),
        "glossary": glossary_markdown().strip(),
    }
    for name, content in parts.items():
        between = re.compile(f"(<!-- {name} -->\n).*?(\n<!-- end {name} -->)", re.S)
        if not between.search(text):
            raise ValueError(f"{README.name} has no part <!-- {name} --> ... <!-- end {name} -->")
        text = between.sub(lambda match, content=content: match.group(1) + content + match.group(2), text)
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
