"""`python -m jaxrl_llm` is `jaxrl-llm`."""

from jaxrl_llm.cli import main

main()
