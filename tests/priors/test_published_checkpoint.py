"""Published files are read whole, strictly, and without running anything in them."""
import io
import json
import pickle
import struct
from collections import OrderedDict

import pytest
import torch
from portrait_diffusion import cli
from portrait_diffusion.errors import UsageError
from portrait_diffusion.priors.published import convert, families
from portrait_diffusion.priors.published.checkpoint import open_checkpoint
from portrait_diffusion.priors.published.convert import generator_of
from portrait_diffusion.priors.published.safe_pickle import read_pickle_bytes
from portrait_diffusion.priors.published.sizes import FAMILIES

from priors.published_pickles import (
    EG3D_PLANE_AXES,
    Bytes,
    Persistent,
    installed,
    published_object,
    storage_bytes,
    write_published,
)
from priors.published_samples import random_state, tiny_sizes


def one_sentence(error: UsageError) -> str:
    text = str(error)
    assert "\n" not in text and text.endswith(".") and len(text) < 400, text
    return text


def refused(path) -> str:
    with pytest.raises(UsageError) as caught:
        open_checkpoint(path)
    return one_sentence(caught.value)


def dump(path, value) -> None:
    with installed(), open(path, "wb") as file:
        pickle.dump(value, file, protocol=4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_come_back_bit_for_bit(family, protocol, tmp_path):
    sentinel = tmp_path / "ran"
    source = f"open({str(sentinel)!r}, 'w').close()\nraise SystemExit('ran')\n"
    state = write_published(tmp_path / "net.pkl", family, source, protocol)
    found = open_checkpoint(tmp_path / "net.pkl", family)
    assert not sentinel.exists()
    assert found.family == family and found.raw_resolution == 8 and found.state.keys() == state.keys()
    assert all(torch.equal(found.state[key], value) for key, value in state.items())
    assert found.arguments["ray_start"] > 2 and not found.name
    assert not any("axes" in note for note in found.notes)
    generator = generator_of(found)
    assert generator.sizes == tiny_sizes(family)
    assert generator.options.box_warp == (0.7 if family == "pyramid" else 1.0)


def test_planes_with_other_axes_are_noticed(tmp_path):
    write_published(tmp_path / "net.pkl", "panohead", axes=EG3D_PLANE_AXES)
    assert any("axes" in note for note in open_checkpoint(tmp_path / "net.pkl").notes)


def test_a_bare_generator_is_accepted(tmp_path):
    with installed():
        value = published_object("eg3d", random_state(tiny_sizes("eg3d")))["G_ema"]
        (tmp_path / "tuned.pkl").write_bytes(pickle.dumps(value, protocol=4))
    assert open_checkpoint(tmp_path / "tuned.pkl").family == "eg3d"


class Hostile:
    """Pickles as a call of any function, its result possibly with a state."""

    def __init__(self, function, *arguments, state=None):
        self.call = function, arguments, state

    def __reduce__(self):
        return self.call


def test_code_in_the_pickle_does_not_run(tmp_path):
    import os

    sentinel = tmp_path / "ran"
    for function, arguments in ((os.system, (f"touch {sentinel}",)), (eval, (f"open({str(sentinel)!r}, 'w')",)),
                                (getattr, ("", "join")), (torch.load, (str(sentinel),))):  # fmt: skip
        value = published_object("eg3d", random_state(tiny_sizes("eg3d")))
        value["augment_pipe"] = Hostile(function, *arguments)
        dump(tmp_path / "net.pkl", value)
        assert "which no published file does" in refused(tmp_path / "net.pkl")
    assert not sentinel.exists()


def test_code_in_a_nested_storage_does_not_run(tmp_path):
    import os

    sentinel = tmp_path / "ran"
    nested = pickle.dumps(Hostile(os.system, f"touch {sentinel}"), protocol=2)
    whole = io.BytesIO()
    torch.save(Hostile(os.system, f"touch {sentinel}"), whole, _use_new_zipfile_serialization=False)
    zipped = io.BytesIO()
    torch.save(Hostile(os.system, f"touch {sentinel}"), zipped)
    for data in (nested, whole.getvalue(), zipped.getvalue(), b"", b"\x80"):
        value = published_object("eg3d", random_state(tiny_sizes("eg3d")))
        value["augment_pipe"] = Bytes(data)
        dump(tmp_path / "net.pkl", value)
        assert "storage" in refused(tmp_path / "net.pkl") or "asks for" in refused(tmp_path / "net.pkl")
    assert not sentinel.exists()


def test_a_claim_of_more_numbers_than_bytes_asks_for_no_memory(tmp_path, monkeypatch):
    data = storage_bytes(torch.zeros(3))
    header = data[: -8 - 12]
    bomb = header.replace(b"K\x03N", b"\x8a\x06" + (2**40).to_bytes(6, "little") + b"N")
    assert bomb != header
    bomb += (2**40).to_bytes(8, "little") + bytes(12)
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("torch.load saw the bomb"))
    value = {"G_ema": Bytes(bomb)}
    dump(tmp_path / "net.pkl", value)
    assert "claims 1099511627776 numbers" in refused(tmp_path / "net.pkl")


@pytest.mark.parametrize(
    "size,stride,offset",
    [((10**6,), (0,), 0), ((4,), (1,), 0), ((3,), (1,), 1), ((2, 2), (1, 2), 0), ((-1,), (1,), 0), ((1,), (1,), -1)],
)
def test_views_beyond_their_storage_are_refused(size, stride, offset, tmp_path):
    view = Hostile(torch._utils._rebuild_tensor_v2, Bytes(storage_bytes(torch.zeros(3))), offset, size, stride, False,
                   OrderedDict())  # fmt: skip
    dump(tmp_path / "net.pkl", {"G_ema": view})
    assert "does not fit its storage" in refused(tmp_path / "net.pkl")


def test_the_same_bytes_cannot_be_loaded_over_and_over(tmp_path):
    data = storage_bytes(torch.zeros(5000))
    dump(tmp_path / "net.pkl", {"G_ema": [Bytes(data) for _ in range(50)]})  # memoized: one copy in the file
    assert (tmp_path / "net.pkl").stat().st_size < 25_000
    assert "more memory than the file has bytes" in refused(tmp_path / "net.pkl")


def test_a_memo_bomb_is_refused(tmp_path):
    (tmp_path / "net.pkl").write_bytes(b"\x80\x04}r\xff\xff\xff\x7f.")
    assert "larger than any published" in refused(tmp_path / "net.pkl")


def doubled(times: int) -> list:
    """A list of lists that is short in a pickle and 2**times long when its parts are copied one by one."""
    value: list = ["x"]
    for _ in range(times):
        value = [value, value]
    return value


def test_repetition_asks_for_no_memory(tmp_path):
    """Arguments, modules and names that refer to the same thing again and again stay small or are refused."""
    value = published_object("eg3d", random_state(tiny_sizes("eg3d")))
    generator = value["G_ema"]
    generator.values["rendering_kwargs"]["notes"] = doubled(30)
    generator.values["neural_rendering_resolution"] = doubled(30)
    dump(tmp_path / "net.pkl", value)
    found = open_checkpoint(tmp_path / "net.pkl")
    assert len(json.dumps(found.arguments)) < 20_000
    with pytest.raises(UsageError, match="neural_rendering_resolution") as caught:
        generator_of(found)
    one_sentence(caught.value)
    nested = Persistent("A", {"_modules": {}}, "")
    for _ in range(25):
        nested = Persistent("A", {"_modules": {"a": nested, "b": nested}}, "")
    dump(tmp_path / "net.pkl", {"G_ema": nested})
    assert "more than 10000 modules" in refused(tmp_path / "net.pkl")
    dump(tmp_path / "net.pkl", {"G_ema": Persistent(doubled(30), {}, "")})
    assert "no generator of the EG3D family" in refused(tmp_path / "net.pkl")


@pytest.mark.parametrize(
    "opening,call,expected",
    [
        ("cbuiltins\nset\n", "set", "a set is not one of names"),
        ("ctorch\nSize\n", "Size", "malformed shape"),
        ("ccollections\nOrderedDict\n", "dict", "no well-formed checkpoint"),
        ("cdnnlib.util\nEasyDict\n", "dict", "no well-formed checkpoint"),
    ],
)
def test_long_copies_are_refused(opening, call, expected, tmp_path):
    """A call that copies a long list takes four bytes in a pickle, and could stand there a million times."""
    items = b"]q\x00(" + b"K\x01" * 5000 + b"e0"
    if call == "dict":
        items = b"}q\x00(" + b"".join(b"K%cK\x01" % i for i in range(200)) + b"u0"
    (tmp_path / "net.pkl").write_bytes(b"\x80\x03" + items + opening.encode() + b"h\x00\x85R.")
    assert expected in refused(tmp_path / "net.pkl")


def test_encoded_bytes_are_no_more_than_the_file(tmp_path):
    text = b"X" + struct.pack("<I", 5000) + b"a" * 5000 + b"q\x000"
    call = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
    (tmp_path / "net.pkl").write_bytes(b"\x80\x03" + text + b"(" + call * 20 + b"t.")
    assert "more memory than the file has bytes" in refused(tmp_path / "net.pkl")


def test_numbers_and_names_no_one_could_print(tmp_path):
    value = published_object("eg3d", random_state(tiny_sizes("eg3d")))
    value["G_ema"].values["rendering_kwargs"] |= {"ray_start": 10**6000, "n": 10**6000, 7: 1}
    dump(tmp_path / "net.pkl", value)
    assert "n" in open_checkpoint(tmp_path / "net.pkl").arguments
    with pytest.raises(UsageError, match="ray_start"):
        generator_of(open_checkpoint(tmp_path / "net.pkl"))
    value = published_object("eg3d", random_state(tiny_sizes("eg3d")) | {"a\nb\x1b[2J.weight": torch.zeros(2)})
    value["G_ema"].values["_non_persistent_buffers_set"] = 5
    dump(tmp_path / "net.pkl", value)
    with pytest.raises(UsageError, match=r"a\?b\?\[2J") as caught:
        generator_of(open_checkpoint(tmp_path / "net.pkl"))
    one_sentence(caught.value)
    (tmp_path / "net.pkl").write_bytes(b"\x80\x04X\x03\x00\x00\x00a\nbX\x02\x00\x00\x00\x1bc\x93.")
    assert "asks for 'a?b.?c'" in refused(tmp_path / "net.pkl")


def test_tensors_and_functions_take_no_state(tmp_path):
    tensor = torch.zeros(3)

    function, arguments = tensor.__reduce_ex__(2)[:2]
    dump(tmp_path / "net.pkl", {"G_ema": Hostile(function, *arguments, state=(tensor, 0, (10**9,), (1,)))})
    assert "a tensor comes with a state" in refused(tmp_path / "net.pkl")
    on_function = b"\x80\x04ctorch._utils\n_rebuild_parameter\nN}X\x08\x00\x00\x00__name__X\x01\x00\x00\x00xs\x86b."
    (tmp_path / "net.pkl").write_bytes(on_function)
    assert "a function comes with a state" in refused(tmp_path / "net.pkl")


def twice(levels: int) -> bytes:
    """Opcodes that push t = (t, t), so often: five bytes a level, and its hash takes 2**levels steps."""
    return b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(levels))


EASY, ORDERED, SIZE = b"cdnnlib.util\nEasyDict\n)R", b"ccollections\nOrderedDict\n)R", b"ctorch\nSize\n"


@pytest.mark.parametrize(
    "opcodes",
    [
        b"}" + twice(30) + b"K\x01s", b"}(" + twice(30) + b"K\x01u", b"(" + twice(30) + b"K\x01d",
        b"\x8f(" + twice(30) + b"\x90", b"(" + twice(30) + b"\x91", EASY + twice(30) + b"K\x01s",
        ORDERED + b"(" + twice(30) + b"K\x01u", b"}" + SIZE + twice(30) + b"\x85RK\x01s",
        b"((\x91\x91", b"}(K\x01K\x01" + b")" + b"\x85" * 100_000 + b"K\x01u",
        b"}\x8a\x09" + bytes(8) + b"\x01K\x01s",
    ],
    ids=["item", "items", "dict", "set", "frozenset", "easy", "ordered", "size", "sets", "deep", "number"],
)  # fmt: skip
def test_keys_that_take_for_ever_to_hash_are_refused(opcodes, tmp_path):
    """As a key, 30 tuples take minutes, 60 for ever, and 100,000 within one another overflow the stack."""
    (tmp_path / "net.pkl").write_bytes(b"\x80\x04" + opcodes + b".")
    assert "as a key, which no published file has" in refused(tmp_path / "net.pkl")


def test_plain_keys_are_read():
    a = b"X\x01\x00\x00\x00a"
    items, frozen, members = b"}(K\x01K\x02" + a + b"K\x03NK\x04\x89K\x05u", b"(K\x01" + a + b"\x91", b"\x8f(K\x07\x90"
    found = read_pickle_bytes(b"\x80\x04" + items + frozen + members + b"\x87.", 100)
    assert found == ({1: 2, "a": 3, None: 4, False: 5}, frozenset({1, "a"}), {7})


@pytest.mark.parametrize("where", ["kind", "key", "count", "machine"])
def test_headers_of_storages_that_take_for_ever_to_read_are_refused(where, tmp_path):
    """They are compared, looked up and shown, each of which walks through all that refers to the same thing twice."""
    kind, key, count, machine = (
        twice(30) if name == where else usual
        for name, usual in (("kind", b"ctorch\nFloatStorage\n"), ("key", b"X\x01\x00\x00\x00k"), ("count", b"K\x01"),
                            ("machine", b"K\x01"))
    )  # fmt: skip
    pickles = [
        pickle.dumps(0x1950A86A20F9469CFC6C, 2)[:-1], b"M\xe9\x03",
        b"}(X\x0d\x00\x00\x00little_endian\x88" + machine + b"K\x01u",
        b"(X\x07\x00\x00\x00storage" + kind + key + b"X\x03\x00\x00\x00cpu" + count + b"NtQ", b"]" + key + b"a",
    ]  # fmt: skip
    numbers = struct.pack("<q", 1) + bytes(4)
    dump(tmp_path / "net.pkl", {"G_ema": Bytes(b"".join(part + b"." for part in pickles) + numbers)})
    assert "a tensor's header says something by reference" in refused(tmp_path / "net.pkl")


def test_few_tensors_and_short_names(tmp_path):
    """One dictionary in many modules counts in each, and names grow with every level."""
    shared = {str(i): None for i in range(200)}
    children = {str(i): Persistent("A", {"_parameters": shared}, "") for i in range(100)}
    dump(tmp_path / "net.pkl", {"G_ema": Persistent("A", {"_modules": children}, "")})
    assert "more than 10000 tensors" in refused(tmp_path / "net.pkl")
    for kind in ("_modules", "_parameters"):
        leaf = Persistent("A", {}, "") if kind == "_modules" else torch.zeros(1)
        inner = Persistent("A", {kind: {"b" * 300: leaf}}, "")
        dump(tmp_path / "net.pkl", {"G_ema": Persistent("A", {"_modules": {"a" * 300: inner}}, "")})
        assert "names longer than 500" in refused(tmp_path / "net.pkl")


def test_a_dictionary_takes_no_attributes(tmp_path):
    """Python's own OrderedDict would: one of them could take the place of its method `items`."""
    hostile = Hostile(OrderedDict, state={"items": 5})
    hostile.call += None, iter([("a", None)])
    dump(tmp_path / "net.pkl", {"G_ema": Persistent("A", {"_parameters": hostile}, "")})
    assert "no generator of the EG3D family" in refused(tmp_path / "net.pkl")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_cut_off_files(share, tmp_path):
    write_published(tmp_path / "net.pkl", "eg3d")
    data = (tmp_path / "net.pkl").read_bytes()
    (tmp_path / "cut.pkl").write_bytes(data[: int(share * len(data))])
    assert "cut off" in refused(tmp_path / "cut.pkl")


def test_other_files_are_named(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.pth")
    assert "zip archive" in refused(tmp_path / "weights.pth")
    (tmp_path / "page.pkl").write_text("<html>quota exceeded</html>")
    assert "no checkpoint" in refused(tmp_path / "page.pkl")
    (tmp_path / "old.pkl").write_bytes(b"\x80\x03cdnnlib.tflib.network\nNetwork\n.")
    assert "TensorFlow" in refused(tmp_path / "old.pkl")
    assert "does not exist" in refused(tmp_path / "none.pkl")
    assert "is a folder" in refused(tmp_path)
    dump(tmp_path / "dict.pkl", {"G_ema": {"a": 1}})
    assert "holds no generator" in refused(tmp_path / "dict.pkl")


def test_damaged_networks_are_refused(tmp_path):
    state = random_state(tiny_sizes("panohead"))
    broken = state | {"torgb.weight": torch.full_like(state["torgb.weight"], torch.nan)}
    write_published(tmp_path / "nan.pkl", "panohead", state=broken)
    assert "not finite" in refused(tmp_path / "nan.pkl")
    fewer = {k: v for k, v in state.items() if k != "bcg_synthesis.b8.conv0.bias"}
    write_published(tmp_path / "fewer.pkl", "panohead", state=fewer)
    with pytest.raises(UsageError, match="lacks 'bcg_synthesis.b8.conv0.bias'") as caught:
        generator_of(open_checkpoint(tmp_path / "fewer.pkl"))
    one_sentence(caught.value)
    other = state | {"superresolution.block0.resample_filter": torch.ones(4, 4) / 16}
    write_published(tmp_path / "filter.pkl", "panohead", state=other)
    with pytest.raises(UsageError, match="not the filter"):
        generator_of(open_checkpoint(tmp_path / "filter.pkl"))
    nested = Persistent("A", {"_modules": {}}, "")
    for _ in range(50):
        nested = Persistent("A", {"_modules": {"a": nested}}, "")
    dump(tmp_path / "deep.pkl", {"G_ema": nested})
    assert "deeper" in refused(tmp_path / "deep.pkl")


def test_the_family_must_be_the_one_asked_for(tmp_path):
    write_published(tmp_path / "net.pkl", "eg3d")
    with pytest.raises(UsageError, match=r"prior\.type is 'panohead'"):
        open_checkpoint(tmp_path / "net.pkl", "panohead")


def test_checksums_name_published_files(tmp_path, monkeypatch):
    write_published(tmp_path / "net.pkl", "eg3d")
    found = open_checkpoint(tmp_path / "net.pkl")
    assert any("SHA-256" in note for note in found.notes)
    monkeypatch.setitem(families.FACTS["eg3d"].files, found.sha256, "published.pkl")
    again = open_checkpoint(tmp_path / "net.pkl")
    assert again.name == "published.pkl" and not again.notes


@pytest.mark.parametrize("family", FAMILIES)
def test_converting(family, tmp_path, capsys):
    state = write_published(tmp_path / "net.pkl", family)
    assert cli.main(["convert-prior", str(tmp_path / "net.pkl")]) == 0
    said = capsys.readouterr().out
    facts = json.loads((tmp_path / "net.json").read_text())
    assert facts["family"] == family and facts["sha256"] in said and facts["licence"] in said
    published, converted = open_checkpoint(tmp_path / "net.pkl"), open_checkpoint(tmp_path / "net.safetensors", family)
    assert converted.sha256 == published.sha256 and converted.arguments == published.arguments
    assert converted.raw_resolution == 8
    assert all(torch.equal(converted.state[key], value) for key, value in state.items())
    assert generator_of(converted).options == generator_of(published).options
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.json", "net.pkl", "net.safetensors"]


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_shapes_alone(family, tmp_path, monkeypatch):
    """Without the numbers, a file is as large as it is but nothing of it is turned into tensors that hold memory."""
    state = write_published(tmp_path / "net.pkl", family)
    assert cli.main(["convert-prior", str(tmp_path / "net.pkl")]) == 0
    whole = open_checkpoint(tmp_path / "net.pkl")
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("numbers were read"))
    for file in ("net.pkl", "net.safetensors"):
        found = open_checkpoint(tmp_path / file, family, numbers=False)
        assert {k: tuple(v.shape) for k, v in found.state.items()} == {k: tuple(v.shape) for k, v in state.items()}
        assert all(value.is_meta for value in found.state.values())
        assert (found.arguments, found.raw_resolution) == (whole.arguments, whole.raw_resolution)
        assert generator_of(found).options == generator_of(whole).options


def test_a_converted_file_cannot_call_itself_a_published_one(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    write_published(tmp_path / "net.pkl", "eg3d")
    cli.main(["convert-prior", str(tmp_path / "net.pkl")])
    with safe_open(tmp_path / "net.safetensors", framework="pt") as handle:
        facts = json.loads(handle.metadata()["facts"])
        state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    for change, name in (({"name": "published.pkl"}, ""), ({"sha256": "\x1b[2J"}, None)):
        header = {"kind": "published-prior", "facts": json.dumps(facts | change)}
        save_file(state, tmp_path / "forged.safetensors", header)
        if name is None:
            assert "sha256 is none" in refused(tmp_path / "forged.safetensors")
        else:
            assert open_checkpoint(tmp_path / "forged.safetensors").name == name


def test_converting_leaves_nothing_of_a_bad_file(tmp_path, capsys, monkeypatch):
    (tmp_path / "net.pkl").write_bytes(b"\x80\x04N.")
    assert cli.main(["convert-prior", str(tmp_path / "net.pkl")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    write_published(tmp_path / "net.pkl", "eg3d")
    assert cli.main(["convert-prior", str(tmp_path / "net.pkl"), "--out", str(tmp_path / "net.bin")]) == 2
    monkeypatch.setattr(convert, "write_text", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli.main(["convert-prior", str(tmp_path / "net.pkl"), "--out", str(tmp_path / "b.safetensors")]) == 130
    assert not list(tmp_path.glob(".partial*"))


def test_converted_files_are_checked(tmp_path):
    from safetensors.torch import save_file

    write_published(tmp_path / "net.pkl", "eg3d")
    cli.main(["convert-prior", str(tmp_path / "net.pkl")])
    data = (tmp_path / "net.safetensors").read_bytes()
    (tmp_path / "renamed.pkl").write_bytes(data)
    assert open_checkpoint(tmp_path / "renamed.pkl").family == "eg3d"
    (tmp_path / "cut.safetensors").write_bytes(data[:-5])
    assert "no readable safetensors" in refused(tmp_path / "cut.safetensors")
    (tmp_path / "bomb.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "no readable safetensors" in refused(tmp_path / "bomb.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "convert-prior" in refused(tmp_path / "other.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors", {"kind": "published-prior", "facts": "[]"})
    assert "header" in refused(tmp_path / "other.safetensors")
