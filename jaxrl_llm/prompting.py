"""How a question becomes the tokens of a prompt: a layout, a prior prompt before it, solved examples in front.

The form of a prompt moves accuracy more than most algorithms do, so it is fixed by the task and stands in its spelling.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

from jaxrl_llm.chat import render
from jaxrl_llm.published_tokenizer import PublishedTokenizer
from jaxrl_llm.rewards.templates import fill
from jaxrl_llm.spec import nearest
from jaxrl_llm.types import Tokenizer

# Jinja, of `question` and `shots` (each with `question` and `answer`). `chat` is the template of the tokenizer instead.
LAYOUTS = {
    "plain": "{% for shot in shots %}{{ shot.question }}{{ shot.answer }}\n{% endfor %}{{ question }}",
    "qa": (
        "{% for shot in shots %}Question: {{ shot.question }}\nAnswer: {{ shot.answer }}\n\n{% endfor %}"
        "Question: {{ question }}\nAnswer:"
    ),
}
# What is said before every question: the five styles of prior prompts of arXiv 2505.14157, in words of ours.
PRIORS = {
    "reasoning": "Think it through step by step before you answer.",
    "planning": "Write down a short plan first, follow it, and then answer.",
    "code": "Write the steps as a short program, work out by hand what it prints, and then answer.",
    "knowledge": "Recall the facts and rules that the question needs, and then answer.",
    "examples": "Think of a few cases that the statement must cover, check them, and then answer.",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompting:
    """A template with its solved examples.

    template  NAME or NAME+PRIOR: a layout (`plain`, `qa`, `chat`, or a .jinja file) and one of PRIORS said before
    shots     questions with their answers, shown in front
    Raises ValueError for a name that does not exist, with the nearest one, and OSError for a file that cannot be read.
    """

    template: str = "plain"
    shots: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        if self.prior and self.prior not in PRIORS:
            raise ValueError(f"there is no prior prompt {self.prior!r}{nearest(self.prior, list(PRIORS))}")
        if self.layout not in (*LAYOUTS, "chat") and not self.layout.endswith(".jinja"):
            choices = nearest(self.layout, [*LAYOUTS, "chat"])
            raise ValueError(f"there is no template {self.layout!r}{choices}; or give the path of a .jinja file")
        self._source  # noqa: B018 (a file that cannot be read is an error now)

    @property
    def layout(self) -> str:
        """The template without its prior prompt."""
        return self.template.partition("+")[0]

    @property
    def prior(self) -> str:
        """Name of the prior prompt, or ""."""
        return self.template.partition("+")[2]

    @property
    def by_line(self) -> bool:
        """Whether an answer ends with its first line: for `qa`, and where examples are shown as text."""
        return self.layout == "qa" or (bool(self.shots) and self.layout != "chat")

    @functools.cached_property
    def _source(self) -> str | None:
        if self.layout == "chat":
            return None
        return LAYOUTS.get(self.layout) or pathlib.Path(self.layout).read_text(encoding="utf-8")

    def text(self, question: str) -> str:
        """The prompt as text. Only for a layout that is not `chat`. Raises ValueError for a template that fails."""
        shots = [{"question": asked, "answer": answered} for asked, answered in self.shots]
        variables = {"question": self._asked(question), "shots": shots}
        if self.layout in LAYOUTS:
            return fill(self._source, variables)
        return render(self._source, f"the template {self.layout}", **variables)

    def ids(self, tokenizer: Tokenizer, question: str) -> list[int]:
        """The tokens of the prompt, what the model expects in front of a text included.

        No part of a question is ever read as a control token. Raises ValueError for what cannot be spelled.
        """
        if self.layout != "chat":
            return [*opening(tokenizer), *tokenizer.encode(self.text(question))]
        if not isinstance(tokenizer, PublishedTokenizer):
            raise ValueError("template=chat needs the tokenizer of a published model, which brings its chat template")
        messages = []
        for asked, answered in self.shots:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        return tokenizer.chat([*messages, {"role": "user", "content": self._asked(question)}])

    def answer(self, text: str) -> str:
        """How an answer is written behind the prompt, without what ends it."""
        return f" {text}" if self.layout == "qa" else text

    def read(self, text: str) -> str:
        """The answer in a decoded text."""
        text = text.partition("\n")[0] if self.by_line else text
        return text if self.template == "plain" and not self.by_line else text.strip()

    def _asked(self, question: str) -> str:
        return f"{PRIORS[self.prior]}\n\n{question}" if self.prior else question


def opening(tokenizer: Tokenizer) -> Sequence[int]:
    """Ids in front of a text: those that a published model was trained with, the BOS of any other."""
    return tokenizer.opening if isinstance(tokenizer, PublishedTokenizer) else (tokenizer.bos,)


def stops_of(tokenizer: Tokenizer, *, by_line: bool) -> tuple[int, ...]:
    """Ids that end an answer, EOS first; with `by_line` also every id whose text holds the end of a line.

    A line ends in one byte, so no token sequence holds it without such an id.
    """
    ends = tokenizer.stops if isinstance(tokenizer, PublishedTokenizer) else (tokenizer.eos,)
    lines = [i for i in range(tokenizer.vocab_size) if "\n" in tokenizer.decode([i])] if by_line else []
    return tuple(dict.fromkeys([*ends, *lines]))
