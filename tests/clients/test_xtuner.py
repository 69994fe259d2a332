"""XTuner's model class `InternVL_V1_5`, unchanged, on the embedded checkpoint."""

import pytest
import torch
import torch.distributed


@pytest.fixture
def one_process(tmp_path):
    """The class asks for its rank."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_trains(client, one_process, tiny_folder):
    tuned = client("xtuner", "xtuner.model.internvl").InternVL_V1_5(str(tiny_folder), freeze_visual_encoder=True)
    token = tuned.model.img_context_token_id
    input_ids = torch.tensor([[1, *[token] * 64, 30, 31, 32]])
    data = {
        "pixel_values": [torch.randn(1, 3, 224, 224)],
        "input_ids": input_ids,
        "labels": input_ids.masked_fill(input_ids == token, -100),
        "attention_mask": torch.ones_like(input_ids),
        "position_ids": torch.arange(input_ids.shape[1])[None],
    }
    loss = tuned(data)["loss"]
    loss.backward()
    assert loss.isfinite()
    assert tuned.model.mlp1[1].weight.grad.abs().max() > 0
    names = tuned.state_dict()
    assert any(name.startswith("model.language_model.") for name in names)
    assert not any(name.startswith("model.vision_model.") for name in names)
