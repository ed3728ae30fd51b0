"""Weights at an address or in a repository of a hub: downloaded once, verified at each use, nothing half written."""

import hashlib
import json
import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sr_lightning import load
from sr_lightning.cli import for_hydra
from sr_lightning.errors import InputError
from sr_lightning.figure import label_and_path
from sr_lightning.models import main as models
from sr_lightning.pretrained import included
from sr_lightning.pretrained.hub import MANIFEST, endpoint
from sr_lightning.pretrained.published import PUBLISHED
from sr_lightning.pretrained.web import host_of
from sr_lightning.runs.folder import find_checkpoint
from sr_lightning.upscale.command import main
from tests.helpers import run

NAME = "tiny.safetensors"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> bytes:
    """A file of weights that describes its network, an ESPCN x2."""
    from sr_lightning.checkpoints.interop import save_weights
    from sr_lightning.networks import ESPCN

    settings = {"scale": 2, "num_features": [4], "kernel_sizes": [3, 3]}
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / NAME
    save_weights(ESPCN(**settings), path, description=settings | {"_target_": "sr_lightning.networks.ESPCN"})
    return path.read_bytes()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SR_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def manifest_of(files: dict[str, bytes]) -> bytes:
    return json.dumps({name: hashlib.sha256(content).hexdigest() for name, content in files.items()}).encode()


def shared(weights: bytes) -> dict[str, bytes]:
    """The files of a repository that matter for reading."""
    files = {NAME: weights, "README.md": b"---\n"}
    return files | {MANIFEST: manifest_of(files)}


def files_in(folder) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


def test_address_with_a_digest_is_downloaded_once_and_verified_at_each_use(server, cache, weights):
    server.files[f"/{NAME}"] = weights
    digest = hashlib.sha256(weights).hexdigest()
    assert load(f"{server.url}/{NAME}", sha256=digest).scale == 2
    path = find_checkpoint(f"{server.url}/{NAME}#sha256={digest.upper()}")
    assert path.read_bytes() == weights and path.name == NAME
    path = find_checkpoint(f"{server.url}/{NAME}#sha256={digest}")
    assert [where for where, _ in server.asked] == [f"/{NAME}"] * 2  # once for each spelling
    path.write_bytes(weights[:-1] + b"x")
    with pytest.raises(InputError, match=f"{NAME}: expected sha256 {digest}, got .*Delete or replace it"):
        find_checkpoint(f"{server.url}/{NAME}#sha256={digest}")


def test_address_without_a_digest_says_so_once_and_is_verified_by_that_of_the_first_download(
    server, cache, weights, caplog
):
    server.files[f"/{NAME}"] = weights
    path = find_checkpoint(f"{server.url}/{NAME}")
    fixed = f"{server.url}/{NAME}#sha256={hashlib.sha256(weights).hexdigest()}"
    assert [record.getMessage() for record in caplog.records if "without a digest" in record.getMessage()] == [
        f"{server.url}/{NAME} was downloaded without a digest to compare. To fix this version: {fixed}"
    ]
    caplog.clear()
    server.close()
    assert find_checkpoint(f"{server.url}/{NAME}") == path and not caplog.records
    path.write_bytes(b"x")
    with pytest.raises(InputError, match="expected sha256"):
        find_checkpoint(f"{server.url}/{NAME}")


def test_file_with_another_digest_is_refused_and_removed(server, cache, weights):
    server.files[f"/{NAME}"] = weights
    with pytest.raises(
        InputError, match=f"not the expected one: expected sha256 {'0' * 64}.*has been removed"
    ) as error:
        load(f"{server.url}/{NAME}", sha256="0" * 64)
    assert files_in(cache) == [] and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://", "https:// is no address: give https://HOST/FILE"),
        ("https://[::1", r"https://\[::1 is no address"),
        ("https://host:port/a", "is no address"),
        ("https://me:secret@host/a", "is no address"),
        ("https://host/a b", "is no address"),
        ("https://host/\x00", "is no address"),
        ("https://host/a#md5=00", "after # give the digest of the file, sha256="),
        ("https://host/a#sha256=00", "after # give the digest"),
    ],
)
def test_malformed_address_is_one_sentence(address, message, cache):
    with pytest.raises(InputError, match=message):
        find_checkpoint(address)
    assert not cache.exists()


@pytest.mark.parametrize("path", ["best.ckpt", "hf:me/x", "https://host/a#sha256=00"])
def test_digest_belongs_to_an_address(path):
    with pytest.raises(InputError, match="sha256= is for an address without #"):
        load(path, sha256="0" * 64)


def test_names_at_an_address_stay_below_the_cache(server, cache, weights):
    for name in ("%2e%2e%2f%2e%2e%2fa.pth", "..", "", "?a=b", "a" * 3000):
        server.files[f"/x/{name}"] = weights
        path = find_checkpoint(f"{server.url}/x/{name}")
        assert path.resolve().is_relative_to(cache.resolve() / "weights") and len(path.name) <= 100


def test_hydra_gets_addresses_in_quotes():
    address = "https://host/x.pth?a=b#sha256=00"
    assert for_hydra([f"ckpt={address}", f"ckpt=[{address},RUN]", f"ckpt='{address}'"]) == [
        f"ckpt='{address}'",
        f"ckpt=['{address}',RUN]",
        f"ckpt='{address}'",
    ]
    assert label_and_path(address) == ("", address) and label_and_path(f"A={address}") == ("A", address)


def test_repository_is_pinned_at_first_use_and_then_needs_no_network(hub, weights, tmp_path):
    first = hub.add("me/tiny", shared(weights))
    assert load("hf:me/tiny").name == "tiny"
    files = shared(weights)
    second = hub.add("me/tiny", files | {"README.md": b"other"})
    path = find_checkpoint("hf:me/tiny")
    assert path.read_bytes() == weights and path.parent.name == first
    assert find_checkpoint(f"hf:me/tiny@{second}").parent.name == second
    hub.close()
    assert find_checkpoint("hf:me/tiny") == find_checkpoint("hf:me/tiny@main") == path
    assert find_checkpoint(f"hf:me/tiny@{second}").parent.name == second
    with pytest.raises(InputError, match=f"hf:me/tiny@v2: the hub at {hub.url} does not answer"):
        find_checkpoint("hf:me/tiny@v2")


def test_commands_take_weights_from_the_hub(hub, weights, tmp_path, pictures):
    hub.add("me/tiny", shared(weights))
    assert main([str(pictures / "0.png"), "-c", "hf:me/tiny", "-o", str(tmp_path / "big.png")]) == 0
    assert Image.open(tmp_path / "big.png").size == (160, 192)
    exported = run("-m", "sr_lightning.export", "-c", "hf:me/tiny", "--to", "safetensors", "-o", tmp_path / NAME)
    assert f"{NAME}" in exported.stdout


@pytest.mark.slow
def test_training_and_scoring_take_weights_from_the_hub(hub, weights, tmp_path, command):
    hub.add("me/tiny", shared(weights))
    own = ["model=espcn", "model.network.num_features=[4]", "model.network.kernel_sizes=[3,3]", "scale=x2"]
    sources = ["model.warm_start=hf:me/tiny", "model.teacher=hf:me/tiny", "max_steps=2", "val_every=2"]
    done = run(*command, *own, *sources, f"run_dir={tmp_path / 'run'}", check=False)
    assert done.returncode == 0 and "warm start from hf:me/tiny: " in done.stdout + done.stderr
    folder = ["data_root=tests/earlier_version/data", "benchmarks=[Tiny]", f"run_dir={tmp_path / 'scores'}"]
    assert "tiny" in run("evaluate.py", "ckpt=hf:me/tiny", *folder).stdout


def test_token_reaches_the_hub_and_neither_another_host_nor_a_log(hub, weights, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    hub.add("me/tiny", shared(weights))
    hub.private.add("me/tiny")
    with pytest.raises(InputError, match=r"refuses access: it is private or gated, or does not exist; set HF_TOKEN"):
        find_checkpoint("hf:me/tiny")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError, match="has no repository me/tiny") as error:
        find_checkpoint("hf:me/tiny")
    assert "hf_wrong" not in str(error.value)
    hub.asked.clear()
    monkeypatch.setenv("HF_TOKEN", f"{hub.token}\n")
    path = find_checkpoint("hf:me/tiny")
    sent = {where.startswith(hub.store_url): token for _, where, token in hub.asked}
    assert sent == {False: f"Bearer {hub.token}", True: None}
    assert hub.token not in caplog.text
    assert not any(hub.token.encode() in file.read_bytes() for file in path.parents[3].rglob("*") if file.is_file())


def test_malformed_token_is_not_shown(hub, monkeypatch):
    for token in ("hf_a b", "hf_\ta", "hf_ü"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(InputError, match="HF_TOKEN is no token") as error:
            find_checkpoint("hf:me/tiny")
        assert token not in str(error.value) and hub.asked == []


def test_missing_repository_and_revision_are_one_sentence(hub, weights):
    hub.add("me/tiny", shared(weights))
    with pytest.raises(InputError, match="private or gated, or does not exist"):
        find_checkpoint("hf:me/other")
    with pytest.raises(InputError, match="has no repository me/tiny, or no revision v1/a of it"):
        find_checkpoint("hf:me/tiny@v1/a")


@pytest.mark.parametrize("status", [500, 429, 418])
def test_hub_that_fails_is_one_sentence(hub, weights, status):
    hub.add("me/tiny", shared(weights))
    hub.status = status
    with pytest.raises(InputError, match=f"hf:me/tiny: the hub at {hub.url} responds {status} .*later$"):
        find_checkpoint("hf:me/tiny")


def test_other_server_than_a_hub_is_one_sentence(server, cache, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    for answer in (b"<html>", b"[]", b'{"sha": 3}', b'{"sha": "../../x"}'):
        server.files["/api/models/me/tiny/revision/main"] = answer
        with pytest.raises(InputError, match="does not answer as a hub does; is HF_ENDPOINT right"):
            find_checkpoint("hf:me/tiny")
    for address in ("huggingface.co", "ftp://host", "https://[::1"):
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(InputError, match=r"HF_ENDPOINT=.* is no address"):
            endpoint()


@pytest.mark.parametrize(
    "reference",
    [
        "hf:",
        "hf:me",
        "hf:me/a/b",
        "hf:me/..",
        "hf:../a",
        "hf:me/a@",
        "hf:me/a@../x",
        "hf:me/a@x/..",
        "hf:me/ä",
        "hf:/a",
    ],
)
def test_malformed_reference_is_one_sentence(reference, hub):
    with pytest.raises(InputError, match=r"give hf:USER/NAME or hf:USER/NAME@REVISION"):
        find_checkpoint(reference)
    assert hub.asked == []


def test_weights_that_differ_from_the_manifest_leave_nothing(hub, weights, tmp_path):
    hub.add("me/tiny", shared(weights) | {NAME: weights[:-1] + b"x"})
    with pytest.raises(InputError, match=f"{NAME}: the downloaded file is not the expected one: expected sha256"):
        find_checkpoint("hf:me/tiny")
    assert files_in(tmp_path / "cache") == []
    hub.add("me/tiny", shared(weights))
    assert find_checkpoint("hf:me/tiny").read_bytes() == weights


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b"{}",
        b'{"README.md": "00"}',
        b'{"a.safetensors": 3}',
        b'{"a.safetensors": "00"}',
        json.dumps({"../a.safetensors": "0" * 64}).encode(),
        json.dumps({"/a.safetensors": "0" * 64}).encode(),
        json.dumps({"a.safetensors": "0" * 64, "b.safetensors": "0" * 64}).encode(),
        b"\xff",
    ],
)
def test_damaged_manifest_is_one_sentence(hub, manifest, tmp_path):
    hub.add("me/tiny", {MANIFEST: manifest})
    with pytest.raises(InputError, match=r"manifest.json is not a manifest with one file of weights"):
        find_checkpoint("hf:me/tiny")
    assert files_in(tmp_path / "cache") == []


def test_repository_without_a_manifest_is_answered_with_the_way_out(hub, weights):
    commit = hub.add("them/net", {"net.pth": weights})
    with pytest.raises(
        InputError, match=f"no manifest.json in commit {commit}.*{hub.url}/them/net/resolve/{commit}/FILE"
    ):
        find_checkpoint("hf:them/net")


def test_folder_of_share_is_verified_at_each_use(weights, tmp_path):
    for name, content in shared(weights).items():
        (tmp_path / name).write_bytes(content)
    assert np.asarray(load(tmp_path).upscale(np.zeros((4, 4), np.uint8))).shape == (8, 8)
    (tmp_path / NAME).write_bytes(weights[:-1] + b"x")
    with pytest.raises(InputError, match=rf"{NAME} is not the file that manifest.json names: its sha256 differs"):
        load(tmp_path)
    (tmp_path / NAME).unlink()
    with pytest.raises(InputError, match=r"cannot be read \(No such file or directory\), and manifest.json names it"):
        load(tmp_path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_have_an_address_a_licence_and_a_stated_digest(name):
    entry = PUBLISHED[name]
    assert host_of(entry.url) and entry.url.startswith("https://") and entry.file.endswith((".pth", ".pt"))
    assert entry.licence and entry.stated_by and name not in included()
    in_name = "in the file's name" in entry.stated_by
    assert re.fullmatch("[0-9a-f]{8}" if in_name else "[0-9a-f]{64}", entry.sha256)
    assert (f"-{entry.sha256}." in entry.file) == in_name


def test_published_name_is_downloaded_once_with_its_licence_and_verified(server, cache, weights, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    server.files[f"/{NAME}"] = weights
    digest = hashlib.sha256(weights).hexdigest()
    entry = replace(PUBLISHED["edsr_x2"], url=f"{server.url}/{NAME}", sha256=digest[:8])
    monkeypatch.setitem(PUBLISHED, "tiny_x2", entry)
    assert load("tiny_x2").scale == 2 and find_checkpoint("tiny_x2").name == NAME
    assert len(server.asked) == 1 and caplog.text.count("licence: MIT (of the code)") == 1
    monkeypatch.setitem(PUBLISHED, "tiny_x2", replace(entry, sha256="0" * 8))
    with pytest.raises(InputError, match=f"expected sha256 00000000, got {digest}"):
        load("tiny_x2")


def test_weights_are_listed_and_described_by_name(capsys):
    models(["--weights"])
    lines = capsys.readouterr().out.splitlines()
    names = [line.split("|")[1].strip() for line in lines[2:-1]]
    assert names == [*included(), *PUBLISHED]
    assert all(line.count("|") == 10 for line in lines[:-1])
    models(["--weights", *list(included())[:1], "BSRGAN"])
    text = capsys.readouterr().out
    assert "- licence: MIT" in text and "dB" in text and f"- address: {PUBLISHED['BSRGAN'].url}" in text
    with pytest.raises(SystemExit):
        models(["--weights", "luma_x9"])
    assert "there are no weights named luma_x9" in capsys.readouterr().err
