"""Run directories and evaluation folders written by hand, and a reader of the page that a report makes of them."""

from __future__ import annotations

import html.parser
import json

import cv2
import numpy as np

from vsr_dist.cli import main
from vsr_dist.config import dump_config, parse_config
from vsr_dist.ops.picture import two_by_two
from vsr_dist.training.samples import write_samples


def panel(level):
    return np.full((12, 16, 3), level, np.uint8)


def make_run(folder, name, *, psnr=27.0, bicubic=26.5, steps=20, finished=True, window=90, ended=None, **settings):
    folder.mkdir(parents=True)
    tree = {
        "name": name,
        "run_dir": str(folder),
        "train": {"steps": 20},
        "tracking": {"mlflow": False},
        **{key: value for key, value in settings.items() if isinstance(value, dict)},
        **{key: value for key, value in settings.items() if not isinstance(value, dict)},
    }
    (folder / "config.yaml").write_text(dump_config(parse_config(tree, "test")))
    lines = []
    for step in range(0, steps + 1, 10):
        gain = (psnr - bicubic) * step / 20
        line = {"step": step, "time_s": 100.0 + step, "val/psnr_y": bicubic + gain, "val/tof": 0.3 - gain / 10}
        line |= {"val_bicubic/psnr_y": bicubic, "val_bicubic/tof": 0.3}
        if step:
            line |= {"drift/normalized_loss": 0.5 + step / 100, "drift/verdict_code": 0.0}
        lines += [line, {"step": step, "time_s": 100.5 + step, "loss_g/total": 0.05, "perf/clips_per_s": 8.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    environment = {"command": f"vsr-dist train {name}", "git": {"commit": "0123456789abcdef", "changed": "true"}}
    (folder / "environment.json").write_text(json.dumps({**environment, "versions": {"torch": "2", "numpy": name}}))
    write_samples(folder, steps, {"film-0001": two_by_two([panel(v) for v in (10, 20, window, 200)], 12)})
    if finished:
        summary = {"exit_reason": "finished", "seconds": 75.0, "processes": 2, "device": "cpu", "clips_per_s": 9.5}
        (folder / "summary.json").write_text(json.dumps({**summary, "versions": {"torch": "2", "numpy": name}}))
    if ended:
        (folder / "ended.json").write_text(json.dumps(ended))
    return folder


def make_evaluation(folder, *, run=None, psnr=27.0, digest="d1"):
    folder.mkdir(parents=True)
    by_method = {"bicubic": {"psnr_y": 26.0, "tdiff": 0.0005}}
    subject = {"method": "bicubic"}
    if run is not None:
        by_method["ours"] = {"psnr_y": psnr, "tdiff": 0.0004}
        subject = {"provenance": {"run": run, "seed": 0, "steps": 20}}
    scores = {"split": "val", "data_digest": digest, "protocol": "As ever.", "subject": subject}
    scores["table"] = {"film": by_method, "overall": by_method}
    (folder / "metrics.json").write_text(json.dumps(scores))
    cv2.imwrite(str(folder / "comparison.png"), panel(33))
    for name in ("crops", "profiles"):
        (folder / name).mkdir()
        cv2.imwrite(str(folder / name / "film.png"), panel(44))
    return folder


def report(out, *runs):
    return main(["report", str(out), "--runs", *(str(run) for run in runs), "--no-mlflow"])


class Page(html.parser.HTMLParser):
    """Tags that are open, tables as rows of cell texts, and the sources of pictures."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.pictures, self.marks, self.text = [], [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "img":
            self.pictures.append(values["src"])
        if tag == "span" and values.get("class") == "mark":
            self.marks.append(values["style"].removeprefix("background: "))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in ("meta", "img", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


def table_with(page, title):
    return next(table for table in page.tables if table[0][0] == title)
