"""`vsr-dist evaluate`: what does not fit is one line that names both sides."""

from __future__ import annotations

import numpy as np
from evaluate_films import evaluate, small, truth, write_frames


def test_sides_that_do_not_fit_are_both_named(evaluation_fails, tmp_path, film_pair):
    _, real = film_pair
    longer = write_frames(tmp_path / "longer", truth(0, 8))
    message = evaluation_fails("--fake", longer, "--real", real, "--out", tmp_path / "out")
    assert f"{longer} has 8 frames, {real} 6" in message
    wide = write_frames(tmp_path / "wide", truth(0)[:, :, :60])
    assert f"{wide} is 60 x 64 px, {real} 64 x 64 px" in evaluation_fails(
        "--fake", wide, "--real", real, "--out", tmp_path / "o"
    )
    odd = write_frames(tmp_path / "odd", truth(0)[:, :24, :24])
    message = evaluation_fails("--method", "bicubic", "--low", odd, "--real", real, "--out", tmp_path / "out")
    assert f"{odd} is 24 x 24 px, {real} 64 x 64 px; expected the truth to be the same whole number" in message
    shifted = write_frames(tmp_path / "shifted", np.concatenate([truth(0), truth(0)[:1]]))
    (shifted / "00000.png").unlink()
    message = evaluation_fails("--fake", shifted, "--real", real, "--out", tmp_path / "out")
    assert "'00001.png'" in message and "'00000.png'" in message
    write_frames(tmp_path / "GT" / "000", truth(1))
    write_frames(tmp_path / "GT" / "001", truth(2))
    write_frames(tmp_path / "SR" / "000", truth(1))
    message = evaluation_fails("--fake", tmp_path / "SR", "--real", tmp_path / "GT", "--out", tmp_path / "out")
    assert f"001 of --real {tmp_path / 'GT'} is not in --fake {tmp_path / 'SR'}" in message
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_go_together(evaluation_fails, tmp_path, film_pair):
    fake, real, out = *film_pair, ("--out", tmp_path / "out")
    assert "either --data" in evaluation_fails("--method", "bicubic", *out)
    assert "either --data" in evaluation_fails("--method", "bicubic", "--data", "x", "--real", real, *out)
    assert "need --low" in evaluation_fails("--method", "bicubic", "--real", real, *out)
    assert "--low needs --real" in evaluation_fails("--method", "bicubic", "--data", "x", "--low", fake, *out)
    assert "--fake needs --real" in evaluation_fails("--fake", fake, "--data", "x", *out)
    assert "--frames is 1" in evaluation_fails("--fake", fake, "--real", real, "--frames", "1", *out)
    assert "unknown metric 'psnr' (did you mean" in evaluation_fails(
        "--fake", fake, "--real", real, "--metrics", "psnr", *out
    )
    assert "--scale is -2; expected at least 1" in evaluation_fails(
        "--fake", fake, "--real", real, "--scale", "-2", *out
    )
    message = evaluation_fails("--fake", fake, "--real", real, "--tile", "16", *out)
    assert "--no-cuts are for networks: give --checkpoint" in message
    assert "--tile: expected a whole number of at least 1, found 0" in evaluation_fails(
        "--checkpoint", "x", "--real", real, "--tile", "0", *out
    )
    assert "give --against" in evaluation_fails("--results", out[1], *out)
    message = evaluation_fails("--results", out[1], "--against", out[1], "--metrics", "tof", *out)
    assert "--results does not measure again" in message
    assert "does not exist" in evaluation_fails("--fake", tmp_path / "no", "--real", real, *out)
    tiny = write_frames(tmp_path / "small", small(truth(0)))
    message = evaluation_fails("--method", "identity", "--low", tiny, "--real", real, *out)
    assert "truth is x4 as large" in message
    message = evaluation_fails("--fake", tiny, "--real", tiny, "--metrics", "tof", *out)
    assert "at least 48 pixels, found 16" in message and "--metrics" in message
    few = write_frames(tmp_path / "few", truth(0, 4))
    message = evaluation_fails("--fake", few, "--real", few, "--protocol", "tecogan", *out)
    assert "has 4 frames, but protocol tecogan cuts 2" in message


def test_a_folder_with_videos_of_its_own_is_left_alone(evaluation_fails, tmp_path, film_pair):
    """The folder of the pictures is made anew: it must be an evaluation's."""
    mine = tmp_path / "project" / "videos" / "holiday.mp4"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    sides = ("--fake", film_pair[0], "--real", film_pair[1], "--metrics", "psnr_y")
    assert "holds videos/, which would be replaced" in evaluation_fails(*sides, "--out", tmp_path / "project")
    assert mine.read_bytes() == b"mine"
    for _ in range(2):  # An evaluation's own folder is used again.
        evaluate(tmp_path / "out", *sides)
    (tmp_path / "out" / "metrics.json").rename(tmp_path / "out" / ".evaluating")  # as an interrupted one leaves it
    (tmp_path / "out" / "videos").mkdir()
    (tmp_path / "out" / "videos" / "half.mp4").write_bytes(b"half")
    evaluate(tmp_path / "out", *sides)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("metrics.json", "metrics.csv", "sequences.csv", "report.md", "table.txt")
    }
