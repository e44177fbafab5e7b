"""Pickles that somebody else may have written."""

import pickle
from collections import OrderedDict

import pytest
from tests.planted import Planted

from cellray.core.errors import CellrayError
from cellray.core.unpickle import unpickle

ALLOWED = {("collections", "OrderedDict"): OrderedDict, ("here", "make"): dict}


def read(content):
    return unpickle(content, ALLOWED, what="the pickle", mend="ask")


def test_what_is_allowed_is_read():
    value = OrderedDict(a=[1, 2.5, None, "b", (True,), {"c": -7}])
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert read(pickle.dumps(value, protocol)) == value


def test_a_name_stands_for_what_the_reader_gives():
    assert read(b"chere\nmake\n)R.") == {}


def stacked(module, name, argument):
    """A pickle of protocol 4 that calls a function by its name, which may have dots."""
    words = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name))
    text = b"\x8c" + bytes([len(argument)]) + argument.encode()
    return b"\x80\x04" + words + b"\x93" + text + b"\x85R."


@pytest.mark.parametrize("place", ["alone", "inside", "dotted", "ours"])
def test_what_is_not_allowed_is_named_and_never_run(tmp_path, place):
    file = tmp_path / "made"
    content = {
        "alone": pickle.dumps(Planted(file)),
        "inside": pickle.dumps(OrderedDict(a=[Planted(file)])),
        "dotted": stacked("collections", "_sys.modules.__class__", str(file)),
        "ours": stacked("cellray.core.errors", "suggest", str(file)),
    }[place]
    named = {
        "dotted": "collections._sys.modules.__class__",
        "ours": "cellray.core.errors.suggest",
    }.get(place, "posix.mknod")
    with pytest.raises(CellrayError) as error:
        read(content)
    assert str(error.value) == (
        f"the pickle was tampered with: it asks for {named}, which cellray never writes there; ask"
    )
    assert not file.exists()
    if place in {"alone", "inside"}:  # it would have worked
        pickle.loads(content)
        assert file.exists()


def test_nothing_is_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'made')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CellrayError, match=r"evil_module\.x"):
        read(b"cevil_module\nx\n)R.")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, pickle.dumps([1] * 99)[:-5]])
def test_what_is_no_pickle_or_not_whole_is_told_apart(content):
    with pytest.raises((EOFError, pickle.UnpicklingError)):
        read(content)


@pytest.mark.parametrize("content", [b"ccollections\nOrderedDict\n(I1\nI2\ntR.", b"I1\nh\x07."])
def test_whatever_a_pickle_raises_is_one_line(content):
    with pytest.raises((CellrayError, pickle.UnpicklingError)) as error:
        read(content)
    assert "\n" not in str(error.value)
