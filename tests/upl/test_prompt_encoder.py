"""Prompts through frozen text towers of every shape: every pass against open_clip's own `encode_text`."""

import copy
import random
from collections.abc import Iterable
from typing import Any

import open_clip
import pytest
import torch
from models import MakeClip, resolve_folder, write_model
from tokenizer_families import LENGTH, TOKENIZERS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from upl_ray.errors import ConfigError
from upl_ray.upl import prompt_encoder
from upl_ray.upl.clip_model import ClipModel
from upl_ray.upl.prompt_encoder import PromptEncoder, prompt_tokens

TEMPLATE_CTX = "a photo of a"
NAMES = ("cat", "golden retriever", "Boeing 747-400", "x", "l'œuf à la coque")
WORDS = ("cat", "dog", "red", "big", "sea", "old", "car", "sky")  # a token each
OF = ("weight", "bias")
EOS = 49407  # of open_clip's default tokenizer
FIRST_UNUSED = 1000  # no prompt here contains this token or the twenty behind it
CUSTOM = {"block_type": "custom", "qk_norm": True, "scale_heads": True, "scale_attn": True, "scale_fc": True}
COCA: dict[str, Any] = {
    "vision": {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text": {"embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {"context_length": 20, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
    "custom_text": True,
}
# name -> changes of the model's configuration, and the pass that serves it
SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "classic_gelu": ({}, "packed"),
    "classic_quick_gelu": ({"quick_gelu": True}, "packed"),
    "classic_eos": ({"text": {"pool_type": "eos", "eos_id": EOS}}, "packed"),
    "custom_text": ({"custom_text": True}, "packed"),
    "custom_text_eos": ({"text": {"pool_type": "eos", "eos_id": EOS}, "custom_text": True}, "packed"),
    "projection_with_bias": ({"text": {"proj_bias": True}, "custom_text": True}, "packed"),
    "no_projection": ({"text": {"proj_type": "none", "width": 24}, "custom_text": True}, "packed"),
    "layer_scale": ({"text": {"ls_init_value": 0.1}}, "packed"),
    "custom_blocks": ({"text": CUSTOM}, "truncated"),
    "class_token": ({"text": {"embed_cls": True}, "custom_text": True}, "own"),
    "coca": (COCA, "own"),
    "siglip_like": ({"text": {"no_causal_mask": True, "pool_type": "last"}, "custom_text": True}, "own"),
    "bidirectional_argmax": ({"text": {"no_causal_mask": True}, "custom_text": True}, "own"),
    "causal_last": ({"text": {"pool_type": "last"}, "custom_text": True}, "own"),
}


@pytest.fixture(scope="module", params=SHAPES)
def shape(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ClipModel, str]:
    changes, expected = SHAPES[request.param]
    return ClipModel(resolve_folder(write_model(tmp_path_factory.mktemp("shape") / "model", **changes))), expected


@pytest.mark.parametrize("start", [[], [90]], ids=["no start token", "start token"])
def test_placeholders_stand_behind_the_start_token_if_there_is_one(start: list[int]) -> None:
    def tokenizer(texts: list[str], context_length: int = 12) -> Tensor:
        """A token a letter, then an end token, then padding."""
        rows = [[*start, *map(ord, text), 91] for text in texts]
        return torch.tensor([row + [0] * (context_length - len(row)) for row in rows])

    ids, first = prompt_tokens(tokenizer, ("x", "yz"), 3)
    assert first == len(start)
    expected = [[*start, *[ord("a")] * 3, *map(ord, text), 91] for text in ("x.", "yz.")]
    assert ids.tolist() == [row + [0] * (12 - len(row)) for row in expected]


@pytest.mark.parametrize("family", TOKENIZERS)
def test_prompts_of_every_family_of_tokenizers_are_those_of_the_contexts_own_words(family: str) -> None:
    """Letters are tokens and the placeholder is the one of "a", so the oracle tokenizes "aaaa" and the name."""
    make, room = TOKENIZERS[family]
    tokenizer, dot = make(), "" if family == "siglip" else "."  # which SigLIP's leaves out
    longest = "x" * (room - 4 - len(dot))
    ids, _ = prompt_tokens(tokenizer, ("dog", longest), 4)
    assert ids.tolist() == tokenizer(["aaaadog.", f"aaaa{longest}."]).tolist()
    assert ids.shape == (2, LENGTH)
    with pytest.raises(ConfigError, match=f"class name '{longest}x' does not fit behind 4 context tokens"):
        prompt_tokens(tokenizer, ("dog", longest + "x"), 4)
    with pytest.raises(ConfigError, match="class names 'Turkey' and 'turkey' are the same tokens"):
        prompt_tokens(tokenizer, ("dog", "Turkey", "turkey"), 4)


def token_ids(clip: ClipModel, text: str) -> list[int]:
    """Ids between the start and the end token."""
    ids: list[int] = clip.tokenizer([text])[0].tolist()
    return ids[1 : ids.index(EOS)]


def word_embeddings(clip: ClipModel, text: str) -> Tensor:
    tower = getattr(clip.model, "text", clip.model)
    embedded: Tensor = tower.token_embedding.weight[token_ids(clip, text)].detach()
    return embedded


def features_by_table(clip: ClipModel, names: tuple[str, ...], ctx: Tensor) -> tuple[Tensor, Tensor]:
    """Class features [C, D] of one context, and the table of word embeddings that its gradient arrives at.

    The oracle knows nothing of prompts: the context is written over the embeddings of real tokens, a text with those
    tokens in front of the class name is tokenised, and open_clip's own model encodes it.
    """
    model = copy.deepcopy(clip.model)
    table = getattr(model, "text", model).token_embedding.weight
    unused = slice(FIRST_UNUSED, FIRST_UNUSED + len(ctx))
    with torch.no_grad():
        table[unused] = ctx
    table.requires_grad_(True)
    ids = clip.tokenizer([f"{'x ' * len(ctx)}{name}." for name in names])
    assert not ((ids >= unused.start) & (ids < unused.stop)).any()
    ids[:, 1 : 1 + len(ctx)] = torch.arange(unused.start, unused.stop)
    return torch.nn.functional.normalize(model.encode_text(ids), dim=-1), table


def test_the_templates_own_words_as_context_give_the_zero_shot_classifier(shape: tuple[ClipModel, str]) -> None:
    clip, _ = shape
    ctx = word_embeddings(clip, TEMPLATE_CTX)
    assert ctx.shape == (4, PromptEncoder(clip, NAMES, 4).width)
    learned = PromptEncoder(clip, NAMES, 4)(ctx[None])[0]
    open_clips = open_clip.build_zero_shot_classifier(
        clip.model, clip.tokenizer, NAMES, [lambda name: f"{TEMPLATE_CTX} {name}."]
    )
    torch.testing.assert_close(learned, open_clips.T, rtol=0, atol=2e-6)
    torch.testing.assert_close(
        clip.encode_texts([f"{TEMPLATE_CTX} {name}." for name in NAMES]), open_clips.T, rtol=0, atol=2e-6
    )
    assert (open_clips.T @ open_clips).triu(1).max() < 0.9999  # else every tower would pass


def check_against_open_clip(clip: ClipModel, names: tuple[str, ...], ctx: Tensor) -> None:
    """Features and gradients of contexts [G, M, W] equal those of the model's own `encode_text`."""
    ctx = ctx.requires_grad_()
    features = PromptEncoder(clip, names, ctx.shape[1])(ctx)  # [G, C, D]
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((features * weights).sum(), ctx)
    for g in range(len(ctx)):
        expected, table = features_by_table(clip, names, ctx[g].detach())
        torch.testing.assert_close(features[g], expected, rtol=0, atol=2e-6)
        (of_table,) = torch.autograd.grad((expected * weights[g]).sum(), table)
        of_table = of_table[FIRST_UNUSED : FIRST_UNUSED + ctx.shape[1]]
        scale = float(of_table.abs().max())
        assert scale > 1e-3
        torch.testing.assert_close(gradient[g], of_table, rtol=0, atol=1e-5 * scale)


def random_ctx(clip: ClipModel, *shape: int) -> Tensor:
    width = PromptEncoder(clip, NAMES, 4).width
    return torch.randn(*shape, width, generator=torch.Generator().manual_seed(1)) * 0.3


def test_features_and_gradients_equal_the_models_own_encode_text(shape: tuple[ClipModel, str]) -> None:
    clip, _ = shape
    check_against_open_clip(clip, NAMES, random_ctx(clip, 3, 4))


@pytest.mark.parametrize("seed", range(6))
def test_any_lengths_and_order_of_names_and_any_context_give_the_same(small_clip: ClipModel, seed: int) -> None:
    rng = random.Random(seed)
    n_ctx = [1, 2, 5, 9, 13, 16][seed]
    longest = 17 - n_ctx  # 20 positions less start, "." and end
    names = tuple(" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(rng.randint(2, 30)))
    check_against_open_clip(small_clip, names, random_ctx(small_clip, rng.randint(1, 3), n_ctx))


def test_every_pass_and_any_chunking_of_classes_give_the_same(shape: tuple[ClipModel, str]) -> None:
    clip, fastest = shape
    encoder = PromptEncoder(clip, NAMES, 6)
    assert encoder.mode == fastest
    contexts = random_ctx(clip, 2, 6).requires_grad_()
    results = []
    for encoder.mode in {"packed": ("own", "truncated", "packed"), "truncated": ("own", "truncated")}.get(
        fastest, ("own",)
    ):
        for chunks in (1, 3, len(NAMES)):
            encoder.split(chunks)
            features = encoder(contexts)
            (gradient,) = torch.autograd.grad(features[..., 0].square().sum(), contexts)
            results.append((features, gradient))
    for features, gradient in results[1:]:
        torch.testing.assert_close(features, results[0][0], rtol=0, atol=2e-6)
        torch.testing.assert_close(gradient, results[0][1], rtol=0, atol=float(1e-5 * results[0][1].abs().max()))


class Casts(TorchDispatchMode):
    """Counts conversions of some tensors to another dtype."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.pointers, self.seen = {t.data_ptr() for t in tensors}, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._to_copy.default:
            self.seen += args[0].data_ptr() in self.pointers
        return function(*args, **(kwargs or {}))


def bf16_pass(encoder: PromptEncoder, ctx: Tensor) -> tuple[Tensor, Tensor, int]:
    """Features and gradient of a pass in bf16, and how many weights were cast in it."""
    ctx = ctx.requires_grad_()
    model = encoder.bf16_model
    with Casts(model.parameters()) as casts:
        features = encoder(ctx, "bf16")
    (gradient,) = torch.autograd.grad(features[..., 0].square().sum(), ctx)
    return features.detach(), gradient, casts.seen


def test_weights_cast_once_give_what_autocast_gives_bitwise_in_every_pass(
    shape: tuple[ClipModel, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, fastest = shape
    passes = {"packed": ("own", "truncated", "packed"), "truncated": ("own", "truncated")}.get(fastest, ("own",))
    contexts, seen = random_ctx(clip, 2, 6), {}
    for cast_once in (True, False):
        if not cast_once:  # the oracle: torch.autocast over the tower in float32
            monkeypatch.setattr(prompt_encoder, "cast_linear_weights", lambda model: model)
        for mode in passes:
            for chunks in (1, 3):
                encoder = PromptEncoder(clip, NAMES, 6)
                encoder.mode = mode  # type: ignore[assignment]
                encoder.split(chunks)
                seen[cast_once, mode, chunks] = bf16_pass(encoder, contexts)
    for _, mode, chunks in (key for key in seen if key[0]):
        ours, autocast = seen[True, mode, chunks], seen[False, mode, chunks]
        assert torch.equal(ours[0], autocast[0])
        assert torch.equal(ours[1], autocast[1])
        assert ours[2] == 0 < autocast[2]


def test_a_pass_in_bf16_leaves_the_one_in_float32_as_it_is_and_copies_no_other_weights(small_clip: ClipModel) -> None:
    encoder, ctx = PromptEncoder(small_clip, NAMES, 4), random_ctx(small_clip, 2, 4)
    before = encoder(ctx)
    assert not torch.equal(encoder(ctx, "bf16"), before)
    assert torch.equal(encoder(ctx), before)
    theirs = dict(small_clip.model.named_parameters())
    copied = {name for name, p in encoder.bf16_model.named_parameters() if p is not theirs[name]}
    linear = [f"{name}{of}" for name in ("attn.out_proj.", "mlp.c_fc.", "mlp.c_proj.", "attn.in_proj_") for of in OF]
    assert copied == {f"transformer.resblocks.{i}.{name}" for i in range(2) for name in linear} | {"text_projection"}


def test_quick_gelu_is_what_the_configuration_says(make_clip: MakeClip) -> None:
    plain, quick = make_clip("plain"), make_clip("quick", quick_gelu=True)
    blocks = [c.model.transformer.resblocks[0].mlp.gelu for c in (plain, quick)]
    assert [type(b) for b in blocks] == [torch.nn.GELU, open_clip.transformer.QuickGELU]


@pytest.mark.parametrize("tokens", [13, 12])  # 20 positions: start, 4 of context, 13 of name, ".", end
def test_a_name_that_fills_the_context_works(small_clip: ClipModel, tokens: int) -> None:
    name = " ".join(["cat"] * tokens)
    assert len(token_ids(small_clip, name)) == tokens
    features = PromptEncoder(small_clip, ("dog", name), 4)(word_embeddings(small_clip, TEMPLATE_CTX)[None])[0]
    expected = small_clip.encode_texts([f"{TEMPLATE_CTX} dog.", f"{TEMPLATE_CTX} {name}."])
    torch.testing.assert_close(features, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("tokens", [14, 15, 18, 19, 60])
def test_a_name_that_is_too_long_is_refused_by_name(small_clip: ClipModel, tokens: int) -> None:
    name = "zebra " + " ".join(["cat"] * (tokens - 1))
    with pytest.raises(ConfigError, match=r"class name 'zebra .* 4 context tokens"):
        PromptEncoder(small_clip, ("dog", name), 4)


@pytest.mark.parametrize("n_ctx", [17, 18, 20, 21, 100])
def test_more_context_than_the_model_reads_is_refused(small_clip: ClipModel, n_ctx: int) -> None:
    with pytest.raises(ConfigError, match=r"train\.n_ctx"):
        PromptEncoder(small_clip, ("dog", "cat"), n_ctx)


def test_the_most_context_that_fits_works(small_clip: ClipModel) -> None:
    encoder = PromptEncoder(small_clip, ("dog", "cat"), 16)  # start, 16 of context, name, ".", end
    features = encoder(torch.zeros(1, 16, encoder.width))
    assert bool(torch.isfinite(features).all())
    assert int(encoder.eos.max()) + 1 == encoder.ids.shape[1]
