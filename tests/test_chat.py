"""Templates from elsewhere: whatever they ask for, the answer is a text or a ValueError that names them, and soon."""

import os
import time

import pytest

from jaxrl_llm import chat
from jaxrl_llm.prompting import Prompting

HOSTILE = {
    "loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}" + "{% endfor %}" * 3,
    "product": "{{ 'a' * 10**10 }}",
    "product of a variable": "{% set n = 10**10 %}{{ question * n }}",
    "power": "{{ 9**(9**9) }}",
    "list": "{{ ([0] * 10**9) | length }}",
    "doubling": "{% set n = namespace(a='aa') %}{% for i in range(99) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
    "wide": "{{ 'a' | center(10**10) }}",
    "format": "{{ '%10000000000d' % 1 }}",
    "format with a map": "{{ '{:>10000000000}'.format(1) }}",
    "recursion": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "exponential": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "longer than is read": "{{ 'ab' * 2000000 }}",
    "longer than a line": "{{ 'a' * 100000000 }}",
    "source": "{# " + "x" * 300_000 + " #}",
    "nested": "{% if 1 %}" * 20_000,
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "import": "{% include '/etc/passwd' %}",
}


@pytest.fixture(scope="module", autouse=True)
def one_process():
    """Started before the time counts, and ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat, "SECONDS", 1.0)
        assert chat.render("{{ 1 }}") == "1"
        yield
    chat.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_no_template_takes_all_time_or_memory(name, tmp_path):
    file = tmp_path / "hostile.jinja"
    file.write_text(HOSTILE[name])
    start = time.monotonic()
    with pytest.raises(ValueError, match=f"the template {file} fails: "):
        Prompting(template=str(file)).text("3+4")
    assert time.monotonic() - start < 20  # and not for ever
    assert chat.render("{{ a }}!", a="well") == "well!"


def test_nothing_is_filled_in_here(monkeypatch):
    """Neither compiled: both are for the process that can be killed."""
    monkeypatch.setattr("jinja2.Environment.from_string", None)
    assert chat.render("{{ a | upper }}", a="é") == "É"


def test_the_process_comes_back(tmp_path):
    chat.close()
    chat.close()
    assert chat.render("{% for m in messages %}{{ m.content }};{% endfor %}", messages=[{"content": "1"}]) == "1;"
    assert set(chat._pools) == {os.getpid()}
