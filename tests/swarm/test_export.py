import json

import pytest
import torch

from swarm.evaluate import validation_loss
from swarm.export import ExportError, byte_tokenizer, export_checkpoint
from swarm.job import DataSection, Job, PipelineSection
from swarm.pipeline.data import load_corpus, validation_windows
from swarm.pipeline.model import HEAD, demo, forward, init_parameters
from swarm.pipeline.stage import Stage

CONFIG = demo(256)


@pytest.fixture
def parameters():
    """A model assembled from views of four stages' flat tensors, as a swarm ends with."""
    job = Job(seed=7, pipeline=PipelineSection(stages=4))
    stages = [Stage(job, CONFIG, index) for index in range(4)]
    return {name: tensor for stage in stages for name, tensor in stage.named().items()}


def test_transformers_computes_the_same_logits(parameters, tmp_path):
    transformers = pytest.importorskip("transformers")
    export_checkpoint(parameters, CONFIG, tmp_path)
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    inputs = torch.randint(0, 256, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (loaded(inputs).logits - forward(CONFIG, parameters, inputs)).abs().max()
    assert difference < 1e-4
    assert not list(tmp_path.glob("*.part"))


def test_exported_tokenizer_gives_bytes_back(parameters, tmp_path):
    transformers = pytest.importorskip("transformers")
    export_checkpoint(parameters, CONFIG, tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "def f(x):\n\treturn 'é→𝕏'  # ok\n"
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_every_byte_is_a_token():
    vocab = byte_tokenizer().get_vocab()
    assert sorted(vocab.values()) == list(range(256))


def test_tokenizer_file_is_copied(parameters, tmp_path):
    (tmp_path / "own.json").write_text("{}")
    export_checkpoint(parameters, CONFIG, tmp_path / "out", tokenizer=str(tmp_path / "own.json"))
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert "eos_token_id" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_incomplete_and_broken_models_are_refused_before_anything_is_written(parameters, tmp_path):
    out = tmp_path / "out"
    partial = {name: tensor for name, tensor in parameters.items() if name != HEAD}
    with pytest.raises(ExportError, match=r"lacks 1 parameters, the first is lm_head.weight"):
        export_checkpoint(partial, CONFIG, out)
    with pytest.raises(ExportError, match="has shape"):
        export_checkpoint(parameters | {HEAD: torch.zeros(2, 2)}, CONFIG, out)
    with pytest.raises(ExportError, match="not finite"):
        export_checkpoint(parameters | {HEAD: parameters[HEAD] * torch.nan}, CONFIG, out)
    assert not out.exists()


def test_validation_loss_of_an_untrained_model_is_that_of_a_guess(tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(1, 128)) * 200)
    corpus = load_corpus(DataSection(path=str(tmp_path), sequence=32))
    p = init_parameters(CONFIG, 0)
    whole = validation_loss(CONFIG, p, corpus, windows=6, length=32, batch=6)
    assert whole == pytest.approx(torch.tensor(256.0).log().item(), abs=0.1)
    assert validation_loss(CONFIG, p, corpus, windows=6, length=32, batch=4) == pytest.approx(whole, rel=1e-5)
    inputs, targets = validation_windows(corpus, 6, 32)
    expected = torch.nn.functional.cross_entropy(forward(CONFIG, p, inputs).flatten(0, 1), targets.flatten())
    assert whole == pytest.approx(float(expected), rel=1e-5)
