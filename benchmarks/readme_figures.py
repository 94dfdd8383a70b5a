"""Regenerate the README's table, comparison picture and MLflow screenshot from a finished `make demo`.

    .venv/bin/pip install playwright
    .venv/bin/python benchmarks/readme_figures.py --demo demo --chromium chromium

Needs Debian's `chromium` for the screenshot. The MLflow server listens on loopback and stops after the screenshot.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import cv2
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from vsr_dist.core.report_blocks import to_markdown
from vsr_dist.evaluation.output import score_table

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
METRICS = ("psnr_y", "ssim_y", "psnr_rgb", "tdiff")
PAGE = "#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=CHART"
CHARTS = "val/(psnr_y|ssim_y|tof)|samples"
BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"


def write_table(demo: Path) -> None:
    table = json.loads((demo / "evaluation" / "metrics.json").read_text())["table"]
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    after = rest.split(END)[1]
    scores = to_markdown([score_table(table, ["bicubic", "ours"], METRICS)])
    readme.write_text(f"{before}{BEGIN}\n{scores}{END}{after}")


def write_comparison(demo: Path) -> None:
    picture = cv2.imread(str(demo / "evaluation" / "comparison.png"))
    cv2.imwrite(str(IMAGES / "comparison.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 85])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def screenshot(demo: Path, chromium: str, target: Path) -> None:
    """The charts of all runs, filtered to what the README talks about, without the assistant's panel."""
    port = free_port()
    store = f"sqlite:///{(demo / 'mlflow.db').absolute()}"
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        [*command, "--backend-store-uri", store], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}/health")
        with sync_playwright() as playwright:
            flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
            browser = playwright.chromium.launch(executable_path=shutil.which(chromium), args=flags)
            page = browser.new_page(viewport={"width": 1500, "height": 1400})
            page.goto(f"http://127.0.0.1:{port}/{PAGE}")
            page.get_by_role("button", name="Close").click()
            page.get_by_placeholder("Search metric charts").fill(CHARTS)
            page.wait_for_timeout(6000)
            show_pictures(page)
            page.screenshot(path=target)
            browser.close()
        # 256 colours: a third of the bytes, and nothing to see of it.
        Image.open(target).convert("RGB").quantize(256).save(target, optimize=True)
    finally:
        server.terminate()
        server.wait(30)


def show_pictures(page: Page) -> None:
    """In every picture card: parameters off, and the slider at the last step."""
    for number in range(page.get_by_text("samples/").count()):
        card = page.get_by_text("samples/").nth(number).locator("xpath=ancestor::*[.//button][1]")
        card.locator("button").nth(1).click()
        page.get_by_role("menuitem", name="Configure").click()
        page.get_by_role("switch").click()
        page.get_by_role("dialog").get_by_role("button", name="Save changes").click()
        page.wait_for_timeout(1500)
        slider = page.get_by_role("slider").nth(number)
        slider.focus()
        while float(slider.get_attribute("aria-valuenow")) < float(slider.get_attribute("aria-valuemax")):
            page.keyboard.press("ArrowRight")
        page.wait_for_timeout(1500)


def wait_until_healthy(url: str, limit_s: float = 90.0) -> None:
    begin_s = time.monotonic()
    while time.monotonic() - begin_s < limit_s:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"no MLflow server at {url} within {limit_s:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--demo", type=Path, default=Path("demo"), help="folder of a finished demo (default: %(default)s)"
    )
    parser.add_argument("--chromium", default="chromium", help="browser command (default: %(default)s)")
    arguments = parser.parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    write_table(arguments.demo)
    write_comparison(arguments.demo)
    screenshot(arguments.demo, arguments.chromium, IMAGES / "mlflow.png")


if __name__ == "__main__":
    main()
