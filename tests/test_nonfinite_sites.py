"""The campaign of tests/faults/nonfinite.py in short: a bad value at each site leaves nothing behind."""

import pathlib
import sys

import jax.numpy as jnp
import pytest

from jaxrl_llm import learner
from jaxrl_llm.finite import SITES

sys.path.append(str(pathlib.Path(__file__).parent))
from faults import nonfinite as campaign


@pytest.mark.parametrize("site", campaign.PLACES)
def test_a_bad_value_at_a_site_leaves_nothing(site):
    outcome = campaign.trial(site, steps=6, seed=0)
    assert outcome["wrong"] is None
    assert outcome["bad"] >= 2


@pytest.mark.parametrize("site", ["moment", "parameter"])
def test_the_campaign_sees_a_site_that_is_not_looked_at(site, monkeypatch):
    look = learner.update_healthy
    blind = lambda *args: look(*args).at[SITES.index(site)].set(jnp.bool_(True))  # noqa: E731
    monkeypatch.setattr(learner, "update_healthy", blind)
    assert "nothing named" in campaign.trial(site, steps=6, seed=0)["wrong"]
