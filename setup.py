"""What pyproject.toml cannot say: the folder recipes/ of the checkout is mobile_export/recipes/ once installed."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mobile_export", "mobile_export.*"]), "mobile_export.recipes"],
    package_dir={"mobile_export.recipes": "recipes"},
)
