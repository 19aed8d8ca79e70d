"""Contrastive pretraining of one tiny CLIP on rendered type. Shapes: N pictures, S pixels, B pairs, L tokens."""

import math
import time
from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from upl_ray.demo.pretraining.architectures import Architecture
from upl_ray.demo.pretraining.captions import Glyph, write_caption
from upl_ray.demo.pretraining.render import describe, draw_look, paint

BATCH = 128
LEARNING_RATE = 1.5e-3
WARMUP = 50
WEIGHT_DECAY = 0.1
MAX_LOGIT_SCALE = math.log(100)  # CLIP's limit


@dataclass(frozen=True)
class World:
    """The training set: grey pictures, uint8 ``[N, 1, S, S]``, and what each of them shows."""

    pictures: Tensor
    glyphs: list[Glyph]


def render_world(seed: int, size: int) -> World:
    """Render the training set; the same seed gives the same pictures."""
    random = Random(seed)
    looks = [draw_look(random) for _ in range(size)]
    return World(paint(looks, torch.Generator().manual_seed(seed)), [describe(look) for look in looks])


def encode_text(model: CLIP, tokens: Tensor) -> Tensor:
    """Encode ``[B, L]`` tokens as ``model.encode_text`` does, on the columns that are not padding in every row."""
    length = int(tokens.argmax(dim=1).max()) + 1  # EOS has the highest id; causal attention never looks beyond it
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    features: Tensor = x[torch.arange(len(x)), tokens.argmax(dim=1)] @ model.text_projection
    return features


def learning_rate(step: int, steps: int) -> float:
    """Rise linearly, then fall along a cosine to zero."""
    if step < WARMUP:
        return LEARNING_RATE * (step + 1) / WARMUP
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP)))


def richness(progress: float) -> float:
    """Share of the attributes that captions mention: none in the first fifth of the training, all from three fifths on.

    Polarity, blur and size are much easier to see than shapes; described from the start, they are all that is learned.
    """
    return min(1.0, max(0.0, (progress - 0.2) / 0.4))


def make_optimizer(model: CLIP) -> torch.optim.AdamW:
    """Decay matrices only, as CLIP does; never gains, biases and the logit scale."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    kept = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98))


def contrastive_loss(model: CLIP, images: Tensor, tokens: Tensor, true: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy over the batch (arXiv 2103.00020, figure 3).

    The target of a picture is spread evenly over all captions that are ``true [B, B]`` of it, rows are pictures
    (as in UniCL, arXiv 2204.03610): "a three." is true of every three in the batch.
    """
    image_features = F.normalize(model.encode_image(images), dim=-1)
    text_features = F.normalize(encode_text(model, tokens), dim=-1)
    logits = model.logit_scale.exp() * image_features @ text_features.T  # [B, B]
    to_text = F.cross_entropy(logits, true / true.sum(dim=1, keepdim=True))
    to_image = F.cross_entropy(logits.T, true.T / true.T.sum(dim=1, keepdim=True))
    return (to_text + to_image) / 2


def train(architecture: Architecture, world: World, tokenizer: SimpleTokenizer) -> CLIP:
    """Train one backbone; pictures are seen in a new order each epoch, with a new caption each time."""
    torch.manual_seed(architecture.seed)
    random = Random(architecture.seed)
    model = CLIP(**architecture.model_cfg(tokenizer.vocab_size))
    optimizer = make_optimizer(model)
    size = architecture.image_size
    pictures = F.interpolate(world.pictures, size, mode="bicubic", antialias=True)
    order = torch.empty(0, dtype=torch.long)
    started = time.monotonic()
    for step in range(architecture.steps):
        if len(order) < BATCH:
            order = torch.randperm(len(pictures))
        chosen, order = order[:BATCH], order[BATCH:]
        images = ((pictures[chosen].float() / 255 - 0.5) / 0.5).expand(-1, 3, -1, -1)
        glyphs = [world.glyphs[i] for i in chosen.tolist()]
        captions = [write_caption(glyph, random, richness(step / architecture.steps)) for glyph in glyphs]
        true = torch.tensor([[float(caption.is_true_of(glyph)) for caption in captions] for glyph in glyphs])
        tokens = tokenizer([caption.text for caption in captions])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, architecture.steps)
        optimizer.zero_grad()
        loss = contrastive_loss(model, images, tokens, true)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        if step % 50 == 49:
            seconds = time.monotonic() - started
            progress = f"{architecture.name} {step + 1}/{architecture.steps} steps"
            print(f"{progress}, loss {loss.item():.3f}, {seconds:.0f} s", flush=True)
    return model.eval()
