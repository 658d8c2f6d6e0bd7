"""Adaptation: what trains and how much of it, that nothing else changes, and that merging and files are exact."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from gendistill.config import DiT, ModelConfig, UNet
from gendistill.errors import ArtifactError, ConfigError
from gendistill.generator.adaptation import RECORD, WEIGHTS, Adapted, Scaled, adapt, copies, load_adapter, save_adapter
from gendistill.generator.networks import Network, build_network
from gendistill.hashing import hash_tensors

DIT = ModelConfig(
    architecture=DiT(num_layers=3, num_attention_heads=2, attention_head_dim=4, learned_sigma=True),
    prediction_type="epsilon",
)
UNET = ModelConfig(architecture=UNet(block_out_channels=(8, 16), attention_levels=1, norm_num_groups=4))
CLASSES, SHAPE = 5, (3, 8, 8)
D, LAYERS = 8, 3  # of DIT
METHODS = ["full", "difffit", "lora"]
FEW = ["difffit", "lora"]


@pytest.fixture(autouse=True)
def _needs_peft(request: pytest.FixtureRequest) -> None:
    call = getattr(request.node, "callspec", None)
    if call and "lora" in call.params.values():
        pytest.importorskip("peft")


def _noisy(network: Network, seed: int) -> Network:
    """No zero weights, so that every parameter moves the output."""
    rng = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    return network.eval()


def dit(same: bool = True) -> DiTTransformer2DModel:
    """With every block's conditioning alike, as converted from the original, or not."""
    network = _noisy(build_network(DIT, CLASSES, SHAPE, seed=0), 0)
    for block in network.transformer_blocks[1:] if same else []:
        block.norm1.emb.load_state_dict(network.transformer_blocks[0].norm1.emb.state_dict())
    return network


def unet() -> UNet2DModel:
    return _noisy(build_network(UNET, CLASSES, SHAPE, seed=0), 0)


BUILDERS = [pytest.param(dit, id="dit"), pytest.param(unet, id="unet")]
Builder = Callable[[], Network]


def output(network: Network) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    x, t, labels = torch.randn(4, *SHAPE, generator=rng), torch.tensor([0, 10, 500, 999]), torch.tensor([0, 1, 4, 5])
    return network(x, t, class_labels=labels).sample


def disturb(adapted: Adapted) -> Adapted:
    rng = torch.Generator().manual_seed(2)
    for parameter in adapted.trainable().values():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    return adapted


def count(adapted: Adapted) -> int:
    return sum(p.numel() for p in adapted.trainable().values())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", BUILDERS)
def test_adapting_leaves_the_function_as_it_was(build: Builder, method: str) -> None:
    network = build()
    before = output(network)
    adapted = adapt(network, method, rank=2)  # type: ignore[arg-type]
    assert adapted.network is network
    assert torch.equal(output(network), before)
    assert torch.equal(output(adapted.merged()), before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", BUILDERS)
def test_merged_is_the_adapted_network_as_a_plain_one(build: Builder, method: str, tmp_path: Path) -> None:
    before = output(build())
    adapted = disturb(adapt(build(), method, rank=2))  # type: ignore[arg-type]
    wanted = output(adapted.network)
    assert (wanted - before).abs().max() > 1e-2
    state = torch.get_rng_state()
    merged = adapted.merged()
    assert torch.equal(torch.get_rng_state(), state)
    assert type(merged) is type(build())
    assert list(merged.state_dict()) == list(build().state_dict())
    torch.testing.assert_close(output(merged), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(output(adapted.network), wanted)
    assert len({p.data_ptr() for p in merged.parameters()}) == len(merged.state_dict())
    merged.save_pretrained(tmp_path)
    loaded, found = type(merged).from_pretrained(tmp_path, use_safetensors=True, output_loading_info=True)
    assert not any(found.values())
    assert hash_tensors(loaded.state_dict()) == hash_tensors(merged.state_dict())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", BUILDERS)
def test_a_step_changes_every_trainable_parameter_and_no_other(build: Builder, method: str) -> None:
    network = build().train()
    adapted = adapt(network, method, rank=2)  # type: ignore[arg-type]
    named = adapted.trainable()
    assert {id(p) for p in named.values()} == {id(p) for p in network.parameters() if p.requires_grad}
    if method == "lora":
        disturb(adapted)  # A has no gradient while B is zero
    frozen = {n: p.clone() for n, p in network.named_parameters() if not p.requires_grad}
    before = {n: p.clone() for n, p in named.items()}
    optimizer = torch.optim.AdamW(named.values(), lr=1e-2)
    output(network).square().mean().backward()
    optimizer.step()
    still = [n for n, p in named.items() if torch.equal(p, before[n])]
    assert [n for n in still if ".to_k.bias" not in n] == []  # softmax does not see the keys' bias
    assert all(torch.equal(p, frozen[n]) for n, p in network.named_parameters() if n in frozen)
    assert (len(frozen) == 0) == (method == "full")


def test_difffit_of_a_dit_trains_biases_scales_and_one_class_table() -> None:
    adapted = adapt(dit(), "difffit")
    table, patch, gammas = (CLASSES + 1) * D, 2 * 2 * 2 * SHAPE[0], 2 * D
    in_a_block = (3 + 1) * D + (4 + 1) * D + 6 * D + gammas  # attention, feed-forward, adaLN
    conditioning, ends = 2 * D, D + 2 * D + patch  # timestep MLP; patches, last adaLN, output
    assert count(adapted) == LAYERS * in_a_block + conditioning + ends + table
    ends_of_names = {name.rpartition(".")[2] for name in adapted.trainable()}
    assert ends_of_names == {"bias", "gamma", "weight"}
    weights = [name for name in adapted.trainable() if name.endswith("weight")]
    assert weights == ["transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"]


def test_difffit_of_a_unet_trains_biases_norms_scales_and_the_class_table() -> None:
    network = unet()
    norms = [m for m in network.modules() if isinstance(m, torch.nn.GroupNorm)]
    biases = sum(p.numel() for n, p in network.named_parameters() if n.endswith(".bias"))
    scales = [m for n, m in network.named_modules() if n.endswith((".conv2", ".to_out.0"))]
    table = network.class_embedding.weight.numel()
    wanted = biases + sum(m.weight.numel() for m in norms) + sum(len(m.weight) for m in scales) + table
    adapted = adapt(network, "difffit")
    assert count(adapted) == wanted
    assert len(scales) == 8 + 4  # residual blocks and attentions
    assert "mid_block.attentions.0.to_out.0.gamma" in adapted.trainable()
    assert "down_blocks.0.resnets.0.conv2.gamma" in adapted.trainable()


def test_lora_of_a_dit_trains_two_matrices_a_layer_and_one_class_table() -> None:
    pytest.importorskip("peft")
    rank = 2
    adapted = adapt(dit(), "lora", rank=rank)
    attention, feed_forward = 4 * rank * (D + D), 2 * rank * (D + 4 * D)
    assert count(adapted) == LAYERS * (attention + feed_forward) + (CLASSES + 1) * D
    assert "transformer_blocks.2.ff.net.0.proj.lora_A.weight" in adapted.trainable()


def test_lora_of_a_unet_trains_two_matrices_a_layer_and_the_class_table() -> None:
    pytest.importorskip("peft")
    network, rank = unet(), 2
    linear = [m for n, m in network.named_modules() if n.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))]
    convolutions = [m for n, m in network.named_modules() if n.endswith((".conv1", ".conv2"))]
    wanted = sum(rank * (m.in_features + m.out_features) for m in linear)
    wanted += sum(rank * (9 * m.in_channels + m.out_channels) for m in convolutions)
    table = network.class_embedding.weight.numel()
    assert (len(linear), len(convolutions)) == (4 * 4, 2 * 8)
    assert count(adapt(network, "lora", rank=rank)) == wanted + table


def test_counts_of_dit_xl_2_beside_the_published_one() -> None:
    """1.74 M of Minimax Diffusion = 1,642,784 biases and class table + 96,768 scales: six widths in each of 14 blocks.

    Here two widths in each of 28 blocks: its scales on the branch and on the branch's last layer multiply to one, and
    queries, keys and values have none.
    """
    width, depth, out = 1152, 28, 2 * 2 * 8
    with torch.device("meta"):
        network = DiTTransformer2DModel(out_channels=8)
    for first, *others in zip(*(block.norm1.emb.modules() for block in network.transformer_blocks), strict=True):
        for other in others:
            for name, parameter in first.named_parameters(recurse=False):
                setattr(other, name, parameter)  # meta tensors have no values to find equal
    biases = depth * 15 * width + 5 * width + out
    assert biases + 1001 * width == 1_642_784
    assert round((1_642_784 + 14 * 6 * width) / 1e6, 2) == 1.74
    adapted = adapt(network, "difffit", base_hash="none")
    assert count(adapted) == 1_642_784 + depth * 2 * width == 1_707_296
    whole = sum(p.numel() for p in network.parameters())
    assert count(adapted) / whole == pytest.approx(0.0026, abs=1e-4)


def test_lora_count_of_dit_xl_2() -> None:
    pytest.importorskip("peft")
    with torch.device("meta"):
        network = DiTTransformer2DModel(out_channels=8, num_layers=1)
    block = 16 * (4 * 2 * 1152 + 2 * (1152 + 4 * 1152))
    assert count(adapt(network, "lora", rank=16, base_hash="none")) == block + 1001 * 1152


@pytest.mark.parametrize("method", METHODS)
def test_equal_conditioning_of_the_blocks_trains_as_one(method: str) -> None:
    adapted = adapt(dit(), method, rank=2)  # type: ignore[arg-type]
    tables = [b.norm1.emb.class_embedder.embedding_table.weight for b in adapted.network.transformer_blocks]
    assert tables[1] is tables[0]
    assert tables[2] is tables[0]
    assert [n for n in adapted.trainable() if "embedding_table" in n] == [
        "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
    ]
    merged = disturb(adapted).merged()
    apart = [b.norm1.emb.class_embedder.embedding_table.weight for b in merged.transformer_blocks]
    assert all(torch.equal(t, tables[0]) for t in apart)
    assert len({t.data_ptr() for t in apart}) == LAYERS


@pytest.mark.parametrize("method", METHODS)
def test_unequal_conditioning_trains_apart(method: str) -> None:
    assert copies(dit(same=False)) == {}
    adapted = adapt(dit(same=False), method, rank=2)  # type: ignore[arg-type]
    tables = [n for n in adapted.trainable() if "embedding_table" in n]
    assert len(tables) == LAYERS
    assert torch.equal(output(adapted.merged()), output(dit(same=False)))


def test_a_dit_from_scratch_shares_its_class_table() -> None:
    found = copies(build_network(DIT, CLASSES, SHAPE, seed=0))
    assert "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight" in found


def test_one_table_gets_the_gradients_of_all_blocks() -> None:
    apart, together = dit(), dit()
    output(apart).square().mean().backward()
    adapted = adapt(together, "difffit")
    output(together).square().mean().backward()
    wanted = sum(b.norm1.emb.class_embedder.embedding_table.weight.grad for b in apart.transformer_blocks)
    table = adapted.trainable()["transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"]
    torch.testing.assert_close(table.grad, wanted)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", BUILDERS)
def test_label_dropout_is_off_in_training(build: Builder, method: str) -> None:
    network = build().train()
    for block in getattr(network, "transformer_blocks", []):
        block.norm1.emb.class_embedder.dropout_prob = 0.9
    adapted = adapt(network, method, rank=2)  # type: ignore[arg-type]
    assert torch.equal(output(network), output(network))
    assert torch.equal(output(adapted.merged().train()), output(network))


@pytest.mark.parametrize("build", BUILDERS)
def test_lora_is_drawn_from_the_seed_alone(build: Builder) -> None:
    pytest.importorskip("peft")
    torch.manual_seed(7)
    state = torch.get_rng_state()
    one = adapt(build(), "lora", rank=2, seed=3).trainable()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    same, other = (adapt(build(), "lora", rank=2, seed=seed).trainable() for seed in (3, 4))
    assert hash_tensors(one) == hash_tensors(same)
    downs = [name for name in one if ".lora_A." in name]
    assert not any(torch.equal(one[name], other[name]) for name in downs)
    assert len({hash_tensors({"": one[name]}) for name in downs}) == len(downs)
    for name in downs:
        bound = one[name][0].numel() ** -0.5
        assert 0.5 * bound < one[name].abs().max() <= bound


def gradients(adapted: Adapted, call: Callable[..., object]) -> dict[str, Tensor]:
    output(call).square().mean().backward()  # type: ignore[arg-type]
    return {n: p.grad for n, p in adapted.trainable().items() if p.grad is not None}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", BUILDERS)
def test_gradients_are_the_same_under_checkpointing(build: Builder, method: str) -> None:
    one, other = (disturb(adapt(build().train(), method, rank=2)) for _ in range(2))  # type: ignore[arg-type]
    other.network.enable_gradient_checkpointing()
    wanted, found = gradients(one, one.network), gradients(other, other.network)
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[n], wanted[n], rtol=1e-5, atol=1e-7) for n in wanted)


@pytest.mark.slow
@pytest.mark.parametrize("method", FEW)
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(replace(DIT, architecture=replace(DIT.architecture, num_layers=2)), id="dit"),
        pytest.param(ModelConfig(architecture=UNet(block_out_channels=(8,), norm_num_groups=4)), id="unet"),
    ],
)
def test_gradients_are_the_same_under_compile(config: ModelConfig, method: str) -> None:
    torch._dynamo.reset()
    networks = [_noisy(build_network(config, CLASSES, SHAPE, seed=0), 0).train() for _ in range(2)]
    one, other = (disturb(adapt(n, method, rank=2)) for n in networks)  # type: ignore[arg-type]
    wanted = gradients(one, one.network)
    found = gradients(other, torch.compile(other.network, backend="eager"))
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[n], wanted[n], rtol=1e-5, atol=1e-7) for n in wanted)


@pytest.mark.parametrize("layer", [torch.nn.Linear(16, 64), torch.nn.Conv2d(16, 64, 1)])
def test_a_scale_of_1_001_is_not_lost_in_bf16(layer: torch.nn.Module) -> None:
    scaled = Scaled(layer)  # type: ignore[arg-type]
    x = torch.randn(64, 16, *[8] * (layer.weight.ndim - 2), generator=torch.Generator().manual_seed(0))  # type: ignore[operator]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = scaled(x.bfloat16())
        assert torch.equal(before, layer(x.bfloat16()))
        scaled.gamma.fill_(1.001)
        torch.testing.assert_close(scaled(x.bfloat16()).float(), 1.001 * before.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_file_of_a_dit_brings_back_the_merged_network(method: str, same: bool, tmp_path: Path) -> None:
    adapted = disturb(adapt(dit(same), method, rank=2))  # type: ignore[arg-type]
    save_adapter(tmp_path, adapted, {"pretrained": "somewhere", "rank": 99})
    network = dit(same)
    assert load_adapter(network, tmp_path) is network
    assert hash_tensors(network.state_dict()) == hash_tensors(adapted.merged().state_dict())
    record = json.loads((tmp_path / RECORD).read_text())
    assert (record["method"], record["rank"], record["pretrained"]) == (method, 2, "somewhere")
    assert record["base_hash"] == hash_tensors(dit(same).state_dict())
    assert set(load_file(tmp_path / WEIGHTS)) == set(adapted.trainable())


@pytest.mark.parametrize("method", FEW)
def test_an_adapter_file_of_a_unet_brings_back_the_merged_network(method: str, tmp_path: Path) -> None:
    adapted = disturb(adapt(unet(), method, rank=2))  # type: ignore[arg-type]
    save_adapter(tmp_path, adapted)
    loaded = load_adapter(unet(), tmp_path)
    assert hash_tensors(loaded.state_dict()) == hash_tensors(adapted.merged().state_dict())


@pytest.mark.parametrize("method", FEW)
def test_an_adapter_is_far_smaller_than_the_network(method: str, tmp_path: Path) -> None:
    config = ModelConfig(architecture=DiT(num_layers=4, num_attention_heads=4, attention_head_dim=32))
    network = build_network(config, CLASSES, SHAPE, seed=0)
    whole = sum(p.numel() * p.element_size() for p in network.parameters())
    save_adapter(tmp_path, adapt(network, method, rank=2))  # type: ignore[arg-type]
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < whole / 25


def test_an_adapter_of_lora_loads_without_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    adapted = disturb(adapt(unet(), "lora", rank=2))
    save_adapter(tmp_path, adapted)
    monkeypatch.setitem(sys.modules, "peft", None)
    loaded = load_adapter(unet(), tmp_path)
    torch.testing.assert_close(output(loaded), output(adapted.network), rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match=r"pip install 'gendistill\[lora\]'"):
        adapt(unet(), "lora")


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="full, difffit or lora"):
        adapt(unet(), "bitfit")  # type: ignore[arg-type]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_adapter(tmp_path, disturb(adapt(dit(), "difffit")), {"pretrained": "the-base"})
    return tmp_path


def test_another_base_is_refused_and_left_alone(saved: Path) -> None:
    network = dit()
    network.proj_out_2.bias.data[0] += 1e-3
    before = hash_tensors(network.state_dict())
    with pytest.raises(ArtifactError, match=r"other weights .*the-base"):
        load_adapter(network, saved)
    assert hash_tensors(network.state_dict()) == before


def test_missing_and_damaged_files_are_refused(saved: Path) -> None:
    good, record = (saved / WEIGHTS).read_bytes(), (saved / RECORD).read_text()
    for text, message in [
        ("{", "damaged"), ("[]", "holds list"), (record.replace('"format": 1', '"format": 7'), "format 7"),
        (json.dumps({"format": 1}), "lacks method, rank, base_hash, adapter_hash"),
    ]:  # fmt: skip
        (saved / RECORD).write_text(text)
        with pytest.raises(ArtifactError, match=message):
            load_adapter(dit(), saved)
    (saved / RECORD).write_text(record)
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    for data, message in [
        (good[:-4], "missing or damaged"),
        (b"", "missing or damaged"),
        (flipped, "does not match its hash"),
    ]:
        (saved / WEIGHTS).write_bytes(data)
        with pytest.raises(ArtifactError, match=message):
            load_adapter(dit(), saved)
    (saved / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match="missing or damaged"):
        load_adapter(dit(), saved)
    (saved / RECORD).unlink()
    with pytest.raises(ArtifactError, match="is not an adapter"):
        load_adapter(dit(), saved)


GAMMA = "transformer_blocks.1.ff.net.2.gamma"


@pytest.mark.parametrize(
    "change",
    [
        {"nothing.bias": torch.zeros(3)},
        {"nothing.gamma": torch.ones(3)},
        {GAMMA: torch.ones(1)},
        {"proj_out_1.bias": torch.zeros(1)},
        {"proj_out_2.lora_A.weight": torch.zeros(2, D)},
        {"proj_out_2.lora_A.weight": torch.zeros(2, D), "proj_out_2.lora_B.weight": torch.zeros(1, 2)},
    ],
)
def test_tensors_that_do_not_fit_are_refused(saved: Path, change: dict[str, Tensor]) -> None:
    tensors = {**load_file(saved / WEIGHTS), **change}
    save_file(tensors, saved / WEIGHTS)
    record = json.loads((saved / RECORD).read_text())
    (saved / RECORD).write_text(json.dumps({**record, "adapter_hash": hash_tensors(tensors)}))
    network = dit()
    with pytest.raises(ArtifactError, match="does not fit the network"):
        load_adapter(network, saved)
    assert hash_tensors(network.state_dict()) == record["base_hash"]
