"""Where the final answer stands in a worked solution, in one pass over its text."""

from jaxrl_llm.rewards.worker import ANSWER

HASHES = "####"


def after_hashes(text: str) -> str | None:
    """What stands behind the last "####", to the end of its line; None without one, "" where nothing follows."""
    _, marked, behind = text.rpartition(HASHES)
    return behind.partition("\n")[0].strip() if marked else None


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...} (or \fbox{...}) whose braces close; None without one.

    Braces inside may be nested; \{ and \} are signs and count as none. None for more than 100,000 characters, too.
    """
    if len(text) > ANSWER:
        return None
    begins = {at + len(mark) for mark in (r"\boxed", r"\fbox") for at in _places(text, mark)}
    opened: list[tuple[int, bool]] = []
    found, at, word = None, 0, 0  # `word`: where the last text that is no space ends
    while at < len(text):
        if text[at] == "\\" and text[at + 1 : at + 2] in ("{", "}", "\\"):
            at = word = at + 2
            continue
        if text[at] == "{":
            opened.append((at + 1, word in begins))
        elif text[at] == "}" and opened:
            start, is_box = opened.pop()
            if is_box:  # of boxes in boxes the outermost, which closes last
                found = text[start:at].strip()
        at += 1
        word = word if text[at - 1] == " " else at
    return found


def _places(text: str, mark: str) -> list[int]:
    places, at = [], text.find(mark)
    while at >= 0:
        places.append(at)
        at = text.find(mark, at + 1)
    return places
