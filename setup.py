"""What a table cannot say: experiments/ lies beside the package in a checkout, and inside it where it is installed."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["hybrid_flax*"]), "hybrid_flax.experiments"],
    package_dir={"hybrid_flax.experiments": "experiments"},
)
