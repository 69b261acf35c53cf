"""The spelling of calls: what is built, what is refused, and that every recipe can be spelled back."""

import types

import pytest

from jaxrl_llm import recipes, schedules, spec
from jaxrl_llm.spec import SpecError, build, public_functions

PAINT = types.ModuleType("paint")


def plain(size: int = 2, ratio: float = 0.5, glossy: bool = False, name: str = "x", limit: int | None = None):
    """Echoes its arguments."""
    return size, ratio, glossy, name, limit


def coloured(colour: str, size: int = 1):
    """Takes one argument without a name."""
    return colour, size


def open_ended(colour: str, **options):
    """Takes whatever its colour takes."""
    return colour, options


def choosy(size: int = 1):
    """Refuses."""
    raise ValueError(f"size {size} is not to my taste")


for function in (plain, coloured, open_ended, choosy):
    setattr(PAINT, function.__name__, function)
PAINT.__all__ = ["CONSTANT", "choosy", "coloured", "open_ended", "plain"]
PAINT.CONSTANT = 3
PAINT.hidden = lambda: None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", (2, 0.5, False, "x", None)),
        ("plain,size=7", (7, 0.5, False, "x", None)),
        ("plain,ratio=3", (2, 3.0, False, "x", None)),
        ("plain,ratio=1e-4,glossy=true,name=y,limit=4", (2, 1e-4, True, "y", 4)),
        ("plain,glossy=False,name=a=b", (2, 0.5, False, "a=b", None)),
        ("plain,name=3", (2, 0.5, False, "3", None)),
        ("plain,size=-1", (-1, 0.5, False, "x", None)),
        ("coloured:red", ("red", 1)),
        ("coloured:red:dark,size=2", ("red:dark", 2)),
        (
            "open_ended:red,depth=3,shine=0.5,wet=true,kind=oil",
            ("red", {"depth": 3, "shine": 0.5, "wet": True, "kind": "oil"}),
        ),
    ],
)
def test_built(text, value):
    assert repr(build(PAINT, text, "paint")) == repr(value)  # types too: 3 is not 3.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plane", "paint: there is no 'plane'; did you mean 'plain'?"),
        ("zzz", "paint: there is no 'zzz' (choices: choosy, coloured, open_ended, plain)"),
        ("", "paint: there is no ''"),
        ("hidden", "there is no 'hidden'"),
        ("CONSTANT", "there is no 'CONSTANT'"),
        ("__class__", "there is no '__class__'"),
        ("plain,sise=3", "paint: plain has no argument 'sise'; did you mean 'size'?"),
        ("plain,zzz=3", "plain has no argument 'zzz' (choices: glossy, limit, name, ratio, size)"),
        ("plain,size", "'size' in 'plain,size' is not of the form key=value"),
        ("plain,", "'' in 'plain,' is not of the form key=value"),
        ("plain,size=big", "paint: plain: size takes int, not 'big'"),
        ("plain,size=1.5", "size takes int, not '1.5'"),
        ("plain,size=true", "size takes int, not 'true'"),
        ("plain,size=", "size takes int, not ''"),
        ("plain,ratio=half", "ratio takes float, not 'half'"),
        ("plain,glossy=1", "glossy takes bool, not '1'"),
        ("plain,glossy=yes", "glossy takes bool, not 'yes'"),
        ("plain,limit=1.5", "limit takes int | None, not '1.5'"),
        ("plain:3", "write 'plain', not 'plain:3'"),
        ("plain:", "write 'plain', not 'plain:'"),
        ("coloured", "write 'coloured:COLOUR', not 'coloured'"),
        ("coloured:", "write 'coloured:COLOUR', not 'coloured:'"),
        ("coloured,colour=red", "write 'coloured:COLOUR', not 'coloured'"),
        ("coloured:red,colour=blue", "'colour' is given twice"),
        ("plain,size=1,size=2", "'size' is given twice"),
        ("open_ended:red,depth=3,depth=4", "'depth' is given twice"),
        ("choosy,size=5", "paint: choosy,size=5: size 5 is not to my taste"),
    ],
)
def test_refused_with_what_is_wrong_and_what_is_near(text, message):
    with pytest.raises(SpecError) as caught:
        build(PAINT, text, "paint")
    assert message in str(caught.value)


def test_a_spec_error_is_a_value_error():
    assert issubclass(SpecError, ValueError)


def test_signature_spells_the_defaults():
    assert spec.signature("coloured", coloured) == "coloured:COLOUR,size=1"
    assert spec.signature("choosy", choosy) == "choosy,size=1"


SPELLED = [(module, name) for module in (recipes, schedules) for name in module.__all__]


def others(value):
    """Other values of the same type, for a switch or a number; words are choices of their own."""
    if value in ("True", "False"):
        return ["False" if value == "True" else "True"]
    if value.replace("_", "").isalpha():
        return []
    kind = float if "." in value or "e" in value else int
    return [str(kind(2 + kind(value))), str(kind(kind(value) / 2)), str(kind(0.9 + 0.1 * kind(value)))]


@pytest.mark.parametrize(("module", "name"), SPELLED, ids=[name for _, name in SPELLED])
def test_every_recipe_and_schedule_is_spelled_back(module, name):
    default = build(module, name, "recipe")
    assert default.spec.split(",")[0] == name
    assert build(module, default.spec, "recipe").spec == default.spec
    for pair in default.spec.split(",")[1:]:
        key, _, value = pair.partition("=")
        for other in others(value):
            try:
                changed = build(module, f"{name},{key}={other}", "recipe").spec
            except SpecError:
                continue  # out of its range
            assert f"{key}={other}" in changed.split(",")
            assert build(module, changed, "recipe").spec == changed
            break
        else:
            assert value.replace("_", "").isalpha(), f"{name}: {key} takes no other value"


def test_the_spec_names_every_argument_of_its_recipe():
    for name, function in public_functions(recipes).items():
        keys = [pair.partition("=")[0] for pair in function().spec.split(",")[1:]]
        assert keys == [pair.partition("=")[0] for pair in spec.signature(name, function).split(",")[1:]]


@pytest.mark.parametrize(
    ("text", "near"),
    [("grop", "grpo"), ("roo", "rloo"), ("bnp", "bnpo"), ("drgrpo", "dr_grpo"), ("reinforcement", "reinforce")],
)
def test_a_mistyped_recipe_is_told_the_nearest(text, near):
    with pytest.raises(SpecError, match=f"did you mean '{near}'"):
        build(recipes, text, "recipe")
