"""A headless Chromium, and what a person does in the MLflow UI with it. Used by the end-to-end tests of rollouts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import element_to_be_clickable, staleness_of
from selenium.webdriver.support.ui import WebDriverWait

WAIT_S = 60
BUTTON = "//button[contains(@data-component-id, 'modelversiontablealiasescell')]"
"""The button of a version's row that opens its aliases' dialog."""
DIALOG = "//*[@role='dialog']"


@contextmanager
def chromium(width: int = 1400, height: int = 1000) -> Iterator[webdriver.Chrome]:
    """Skips the test where there is no chromedriver."""
    driver_path = shutil.which("chromedriver")
    if driver_path is None:
        pytest.skip("no chromedriver: as root, apt-get install chromium-driver")
    options = webdriver.ChromeOptions()
    # No sandbox: tests may run as root in a container, and only visit pages of this machine.
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.add_argument(f"--window-size={width},{height}")
    driver = webdriver.Chrome(options=options, service=Service(driver_path))
    try:
        yield driver
    finally:
        driver.quit()


class ModelPage:
    """The page of a registered model in the MLflow UI, on which its versions and their aliases stand."""

    def __init__(self, driver: webdriver.Chrome, mlflow_url: str, model: str) -> None:
        self._driver = driver
        self._url = f"{mlflow_url}/#/models/{model}"

    def open(self) -> None:
        self._driver.get("about:blank")  # the same address would not load again
        self._driver.get(self._url)
        self._find(f"//*[@role='row']{BUTTON}")

    def set_alias(self, alias: str, version: int) -> None:
        """Opens the page, adds the alias in the version's dialog, and saves."""
        dialog = self._dialog(version)
        field = self._find(f"{DIALOG}//input")
        field.send_keys(alias)
        field.send_keys(Keys.ENTER)
        self._save(dialog)

    def remove_alias(self, alias: str, version: int) -> None:
        """As `set_alias`: takes the alias out of the version's dialog."""
        dialog = self._dialog(version)
        self._find(f"{DIALOG}//*[@title='{alias}']//button").click()
        self._save(dialog)

    def aliases(self, version: int) -> str:
        """What the version's row shows, aliases and all; opens the page anew."""
        self.open()
        return self._find(self._row(version)).text

    def screenshot(self, file: Path) -> None:
        self._driver.save_screenshot(str(file))

    def _dialog(self, version: int) -> WebElement:
        self.open()
        self._find(f"{self._row(version)}{BUTTON}").click()
        return self._find(f"{DIALOG}[contains(., 'for model version {version}')]")

    def _save(self, dialog: WebElement) -> None:
        self._find(f"{DIALOG}//button[.='Save aliases']").click()
        WebDriverWait(self._driver, WAIT_S).until(staleness_of(dialog))

    @staticmethod
    def _row(version: int) -> str:
        return f"//a[text()='Version {version}']/ancestor::*[@role='row']"

    def _find(self, xpath: str) -> WebElement:
        return WebDriverWait(self._driver, WAIT_S).until(element_to_be_clickable((By.XPATH, xpath)))
