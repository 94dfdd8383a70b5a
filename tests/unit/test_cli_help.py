"""Every verb explains itself, and its example is a command that its own parser accepts."""

from __future__ import annotations

import argparse
import re
import shlex

import pytest

from vsr_dist import __version__
from vsr_dist.cli import VERBS, main, make_parser


def all_verbs():
    (action,) = [a for a in make_parser(None)._actions if isinstance(a, argparse._SubParsersAction)]
    return list(action.choices)


def help_of(capsys, *argv):
    with pytest.raises(SystemExit) as caught:
        main([*argv, "--help"])
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_the_overview_names_every_verb_with_a_summary(capsys):
    text = help_of(capsys)
    assert {"pack", "verify", "inspect", "samples", *VERBS} == set(all_verbs())
    for verb in all_verbs():
        assert re.search(rf"^ +{verb} +\w+", text, re.MULTILINE), verb


@pytest.mark.parametrize("verb", all_verbs())
def test_the_help_of_a_verb_holds_an_example_that_parses(capsys, verb):
    text = help_of(capsys, verb)
    assert "example" in text
    example = re.search(r"^.*(vsr-dist .*)$", text[text.index("example") :], re.MULTILINE)
    program, *argv = shlex.split(example[1])
    assert (program, argv[0]) == ("vsr-dist", verb)
    arguments = make_parser(verb).parse_args(argv)
    assert callable(arguments.handler)


@pytest.mark.parametrize("verb", all_verbs())
def test_every_option_is_explained(verb):
    (action,) = [a for a in make_parser(verb)._actions if isinstance(a, argparse._SubParsersAction)]
    options = action.choices[verb]._actions
    assert len(options) > 1
    plain = [option for option in options if not isinstance(option, argparse._SubParsersAction)]
    assert not [option.dest for option in plain if not option.help]


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"vsr-dist {__version__}\n"


@pytest.mark.parametrize("argv", [[], ["pakc"], ["train"], ["evaluate", "--data", "x", "--out", "y"]])
def test_a_command_that_cannot_be_parsed_ends_with_2(capsys, argv):
    assert main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
