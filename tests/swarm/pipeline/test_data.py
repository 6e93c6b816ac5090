import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm.job import DataSection
from swarm.pipeline.data import DataError, load_corpus, validation_windows, window

TEXTS = [f"document {n}: {'ab' * n} é\n" for n in range(40)]


def section(path, **fields) -> DataSection:
    return DataSection(path=str(path), sequence=16, **fields)


@pytest.fixture
def folder(tmp_path):
    for n, text in enumerate(TEXTS):
        (tmp_path / f"{n}.txt").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def stdlib():
    return load_corpus(DataSection())


def test_standard_library_is_about_twelve_megabytes_and_quick_to_read(stdlib):
    started = time.process_time()
    again = load_corpus(DataSection())
    assert time.process_time() - started < 2  # aimed at 1; processor time, on a busy machine
    assert again.digest == stdlib.digest
    assert 8e6 < len(stdlib.train) + len(stdlib.validation) < 20e6
    assert (stdlib.vocab, stdlib.train.dtype) == (256, np.uint8)
    assert not stdlib.train.flags.writeable


def test_held_out_share_is_what_the_job_says(stdlib):
    total = len(stdlib.train) + len(stdlib.validation)
    assert len(stdlib.validation) == int(total * DataSection().held_out)


def test_held_out_text_looks_like_the_training_text(stdlib):
    train, validation = (np.bincount(part, minlength=256) for part in (stdlib.train, stdlib.validation))
    distance = np.abs(train / train.sum() - validation / validation.sum()).sum() / 2
    assert distance < 0.1


def test_names_and_folders_of_the_files_do_not_matter(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "deep"
    other.mkdir()
    for n, text in enumerate(reversed(TEXTS)):
        (other / f"renamed-{n}.txt").write_text(text, encoding="utf-8")
    assert load_corpus(section(folder)).digest == load_corpus(section(other)).digest


def test_every_format_holds_the_same_documents(folder, tmp_path_factory):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    where = tmp_path_factory.mktemp("formats")
    (where / "all.jsonl").write_text("\n".join(json.dumps({"text": t, "id": 1}) for t in TEXTS) + "\n\n")
    parquet.write_table(pa.table({"text": TEXTS}), where / "all.parquet")
    expected = load_corpus(section(folder)).digest
    assert load_corpus(section(where / "all.jsonl")).digest == expected
    assert load_corpus(section(where / "all.parquet")).digest == expected
    assert load_corpus(section(folder / "*.txt")).digest == expected


def test_documents_end_with_byte_zero_and_hold_none(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x\0y" * 100)
    corpus = load_corpus(section(tmp_path, held_out=0.2))
    tokens = np.concatenate([corpus.train, corpus.validation])
    assert (tokens == 0).sum() == 1
    assert tokens[-1] == 0


def test_split_and_text_change_the_digest(folder):
    corpora = [load_corpus(section(folder, held_out=share)) for share in (0.05, 0.1)]
    (folder / "0.txt").write_text("changed", encoding="utf-8")
    digests = {corpus.digest for corpus in [*corpora, load_corpus(section(folder))]}
    assert len(digests) == 3


def test_a_tokenizer_file_is_used(folder, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(special_tokens=["</s>", "<unk>"], vocab_size=100)
    )
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    corpus = load_corpus(section(folder / "*.txt", tokenizer=str(file), held_out=0.2))
    tokens = np.concatenate([corpus.train, corpus.validation])
    assert corpus.vocab == -(-tokenizer.get_vocab_size() // 64) * 64
    assert (tokens == tokenizer.token_to_id("</s>")).sum() == len(TEXTS)
    assert tokens.max() < corpus.vocab


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing", None, "found no text at"),
        ("a.csv", "a,b", "data.path takes"),
        ("broken.jsonl", "{", "is not valid jsonl"),
        ("other.jsonl", '{"body": "x"}', "line 1 .* has no field `text`"),
        ("broken.parquet", "PAR2", "is not valid parquet"),
        ("empty.jsonl", "\n", "there are no documents in"),
        ("short.txt", "short", "too few for windows of 16"),
        ("deep.jsonl", "[" * 100_000, "is not valid jsonl"),
        ("x" * 300, None, "found no text at"),
        ("\0", None, "found no text at"),
    ],
)
def test_what_cannot_be_read_is_one_clear_sentence(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load_corpus(section(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_an_empty_folder_is_one_clear_sentence(tmp_path):
    with pytest.raises(DataError, match="found no text at"):
        load_corpus(section(tmp_path))


def test_a_parquet_file_without_text_is_one_clear_sentence(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"body": TEXTS}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has no column `text`"):
        load_corpus(section(tmp_path / "a.parquet"))


def test_text_in_the_home_of_nobody_is_one_clear_sentence():
    with pytest.raises(DataError, match="found no text at ~nosuchuser"):
        load_corpus(section("~nosuchuser/x.txt"))


@pytest.mark.parametrize("values", [[1, 2], [b"a", b"b"]])
def test_a_parquet_column_of_anything_but_text_is_one_clear_sentence(tmp_path, values):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"column `text` of .* holds (int64|binary), not text"):
        load_corpus(section(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        ({"document": 0, "ab": 1}, "cannot encode the text: .*UNK"),
        ({"[UNK]": 0, "ab": 1, "far": 900_000}, "has ids up to 900000 for 3 tokens"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_one_clear_sentence(folder, tmp_path, vocab, message):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=message):
        load_corpus(section(folder / "*.txt", tokenizer=str(tmp_path / "tokenizer.json")))


def test_a_tokenizer_with_a_small_gap_has_a_row_for_every_id(folder, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "document": 100}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    corpus = load_corpus(section(folder / "*.txt", tokenizer=str(tmp_path / "tokenizer.json"), held_out=0.2))
    assert corpus.vocab == 128
    assert max(corpus.train.max(), corpus.validation.max()) == 100


def test_a_wrong_tokenizer_is_one_clear_sentence(folder):
    with pytest.raises(DataError, match="there is no tokenizer file"):
        load_corpus(section(folder, tokenizer="missing.json"))
    with pytest.raises(DataError, match="is not a tokenizer file"):
        load_corpus(section(folder, tokenizer=str(folder / "1.txt")))


positions = st.tuples(
    st.integers(0, 2**63 - 1), st.text("abc.~", max_size=4), st.integers(0, 9), st.integers(0, 9)
)


@given(position=positions)
def test_windows_are_a_pure_function_of_their_position(stdlib, position):
    first, second = (window(stdlib, *position, sequences=2, length=32) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@given(one=positions, other=positions)
def test_other_positions_give_other_windows(stdlib, one, other):
    if one != other:
        a, _ = window(stdlib, *one, sequences=4, length=64)
        b, _ = window(stdlib, *other, sequences=4, length=64)
        assert not torch.equal(a, b)


def test_targets_are_inputs_moved_by_one_and_come_from_the_training_text(stdlib):
    inputs, targets = window(stdlib, 0, "a", 3, 1, sequences=3, length=64)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.shape == targets.shape == (3, 64)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    text = bytes(inputs[0].tolist())
    assert text in stdlib.train.tobytes()


@pytest.mark.parametrize(
    ("again", "first"), [("c0.6561f2a1", "c0"), ("c1.6561f2a1~1975a704.3", "c1~1975a704.3")]
)
def test_a_cell_of_a_job_founded_again_draws_the_windows_of_the_first(stdlib, again, first):
    drawn = [window(stdlib, 1, cell, 7, 0, 2, 64)[0] for cell in (again, first)]
    assert torch.equal(*drawn)


def test_windows_reach_the_whole_training_text_and_nothing_else(tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(1, 101)))
    corpus = load_corpus(DataSection(path=str(tmp_path), sequence=8, held_out=0.1))
    seen = {tuple(row.tolist()) for i in range(50) for row in torch.cat(window(corpus, 0, "a", i, 0, 20, 8))}
    tokens = set().union(*seen)
    assert tokens == set(corpus.train.tolist())


def test_validation_windows_spread_from_the_first_to_the_last_held_out_token(stdlib):
    inputs, targets = validation_windows(stdlib, 5, 100)
    assert inputs[0].tolist() == stdlib.validation[:100].tolist()
    assert targets[-1].tolist() == stdlib.validation[-100:].tolist()
    assert validation_windows(stdlib, 1, 100)[0].shape == (1, 100)
