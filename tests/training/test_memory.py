"""What no memory here could hold is refused before it is made."""

import psutil
import pytest
import torch

from calm_core.config import AutoencoderConfig, TransformerConfig, TransformerModelConfig
from calm_core.data.reading.dataset import open_dataset
from calm_core.errors import ConfigError
from calm_core.models.transformer import Transformer
from calm_core.training import memory
from calm_core.training.tasks.base import Inputs
from calm_core.training.tasks.make import make_task

CPU = torch.device("cpu")
PLAIN, AVERAGED = TransformerConfig(), TransformerConfig(ema_decay=0.999)


def small() -> Transformer:
    return Transformer(TransformerModelConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1), 300)


def test_a_model_that_never_fits_is_refused_before_it_is_made(dataset_uri: str) -> None:
    """Each size is within its bounds, and their product is 10^16 bytes; the allocation itself would be the end."""
    model = {"hidden_size": 2**20, "intermediate_size": 2**20, "num_encoder_layers": 1024}
    config = AutoencoderConfig.model_validate({"model": model})
    inputs = Inputs(open_dataset(dataset_uri, "train"), None, 0, CPU, torch.float32)
    with pytest.raises(ConfigError, match=r"^a model of \d[\d,]+ parameters takes [\d,.]+ GiB or more to train, this"):
        make_task(config, inputs)


def test_what_fits_to_the_byte_is_made_and_a_byte_less_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32 four numbers of a parameter, and a fifth if its average is kept."""
    number = sum(p.numel() for p in small().parameters())
    for config, needed in ((PLAIN, 16 * number), (AVERAGED, 20 * number)):
        monkeypatch.setattr(memory, "machine_bytes", lambda needed=needed: needed)
        assert memory.made(small, config, CPU).lm_head.weight.device == CPU
        monkeypatch.setattr(memory, "machine_bytes", lambda needed=needed: needed - 1)
        with pytest.raises(ConfigError, match="parameters"):
            memory.made(small, config, CPU)


def test_more_processes_than_memory_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_bytes", lambda: 8 * memory.BYTES_PER_RANK)
    memory.require_memory("calm: ", 1, PLAIN, ranks=8, ranks_here=8, device=CPU)
    with pytest.raises(ConfigError, match=r"^calm: 9 processes take 1.1 GiB or more, .* lower processes$"):
        memory.require_memory("calm: ", 1, PLAIN, ranks=9, ranks_here=9, device=CPU)


def test_counting_takes_no_random_numbers() -> None:
    torch.manual_seed(3)
    plain = small().state_dict()
    torch.manual_seed(3)
    counted = memory.made(small, PLAIN, CPU).state_dict()
    assert all(torch.equal(plain[name], counted[name]) for name in plain)


def test_a_machine_has_no_more_memory_than_its_system_says() -> None:
    assert 2**28 < memory.machine_bytes() <= psutil.virtual_memory().total
