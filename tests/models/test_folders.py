import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import LABELS
from transformers import BertModel

from stillhouse.contract import ConfigurationError
from stillhouse.models import (
    check_model_folder,
    encode,
    load_model,
    load_tokenizer,
    save_model,
    tokenizer_sha256,
)


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def headless(folder: Path, target: Path) -> Path:
    BertModel.from_pretrained(folder).save_pretrained(target)
    load_tokenizer(folder).save_pretrained(target)
    return target


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    for read in (
        check_model_folder,
        load_tokenizer,
        lambda path: load_model(path, task="text-classification", labels=LABELS),
    ):
        with pytest.raises(ConfigurationError, match=r"pytorch_model\.bin\); convert to safetensors"):
            read(folder)


def test_safetensors_beside_pickles_are_what_is_read(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert load_model(folder, task="text-classification", labels=LABELS).config.num_labels == 2


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_custom_code_is_refused(folder: Path, name: str) -> None:
    change_json(folder / name, auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(ConfigurationError, match=f"auto_map in {name}"):
        check_model_folder(folder)


def test_missing_and_broken_files_are_named(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"config\.json is no readable JSON"):
        check_model_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ConfigurationError, match=r"no config\.json"):
        check_model_folder(folder)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="no weights"):
        check_model_folder(folder)


def test_truncated_weights_are_a_one_line_error(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ConfigurationError, match="can't be loaded") as caught:
        load_model(folder, task="text-classification", labels=LABELS)
    assert "\n" not in str(caught.value)


def test_lacking_weights_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("bert.encoder.layer.1.output.dense.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match=r"lacks 1 weights \(bert\.encoder\.layer\.1\.output\.dense\.weight\)"):
        load_model(folder, task="text-classification", labels=LABELS)


@pytest.mark.parametrize("labels", [("positive", "negative"), ("negative", "neutral", "positive"), ("no", "yes")])
def test_classifier_of_other_labels_is_refused(folder: Path, labels: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match="labels negative, positive and the recipe"):
        load_model(folder, task="text-classification", labels=labels)


def test_new_head_is_the_same_in_spite_of_the_callers_random_state(folder: Path, tmp_path: Path) -> None:
    bare = headless(folder, tmp_path / "bare")
    labels = ("a", "b", "c")
    torch.manual_seed(1)
    one = load_model(bare, task="text-classification", labels=labels)
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    other = load_model(bare, task="text-classification", labels=labels)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.classifier.weight, other.classifier.weight)
    assert one.classifier.weight.std() > 0
    assert list(one.config.id2label.values()) == list(labels)
    original = load_model(folder, task="text-classification", labels=LABELS)
    assert torch.equal(one.bert.embeddings.word_embeddings.weight, original.bert.embeddings.word_embeddings.weight)


def test_headless_model_must_have_all_its_layers(folder: Path, tmp_path: Path) -> None:
    bare = headless(folder, tmp_path / "bare")
    weights = load_file(bare / "model.safetensors")
    weights.pop("encoder.layer.0.attention.self.query.bias")
    save_file(weights, bare / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match="lacks 1 weights"):
        load_model(bare, task="text-classification", labels=LABELS)


def test_saved_model_is_plain_and_its_bytes_depend_on_the_model_alone(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder)
    save_model(load_model(folder, task="text-classification", labels=LABELS), tokenizer, tmp_path / "a")
    encode(tokenizer, ["the film was good"], 3)
    tokenizer(["the film", "good"], padding=True)
    save_model(load_model(tmp_path / "a", task="text-classification", labels=LABELS), tokenizer, tmp_path / "b")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_tokenizer_digest_survives_use_and_saving_and_sees_changes(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder)
    digest = tokenizer_sha256(tokenizer)
    encode(tokenizer, ["the film was good"], 3)
    tokenizer(["the film", "good"], padding=True)
    assert tokenizer_sha256(tokenizer) == digest
    save_model(load_model(folder, task="text-classification", labels=LABELS), tokenizer, tmp_path / "copy")
    assert tokenizer_sha256(load_tokenizer(tmp_path / "copy")) == digest
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"film"', '"movie"'))
    assert tokenizer_sha256(load_tokenizer(folder)) != digest


def test_tokenizer_without_padding_is_refused(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="no padding token"):
        load_tokenizer(folder)
