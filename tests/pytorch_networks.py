"""The published networks in PyTorch, to compare with; needs PyTorch.

Written from their descriptions, with the names that published files have:
IResNet, MobileFaceNet and ViT as in insightface's arcface_torch.
"""

import torch
from torch import nn


def bn2d(channels):
  return nn.BatchNorm2d(channels, eps=1e-5)


def conv(inputs, outputs, size, stride=1, groups=1):
  return nn.Conv2d(
    inputs, outputs, size, stride, size // 2, groups=groups, bias=False
  )


class SqueezeExcitation(nn.Module):
  def __init__(self, channels, reduction):
    super().__init__()
    self.fc1 = conv(channels, channels // reduction, 1)
    self.fc2 = conv(channels // reduction, channels, 1)

  def forward(self, x):
    y = torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))
    return x * torch.sigmoid(self.fc2(y))


class ResidualBlock(nn.Module):
  def __init__(self, inputs, outputs, stride, reduction):
    super().__init__()
    self.bn1, self.conv1 = bn2d(inputs), conv(inputs, outputs, 3)
    self.bn2, self.prelu = bn2d(outputs), nn.PReLU(outputs)
    self.conv2, self.bn3 = conv(outputs, outputs, 3, stride), bn2d(outputs)
    if reduction:
      self.se = SqueezeExcitation(outputs, reduction)
    if stride > 1:
      self.downsample = nn.Sequential(
        conv(inputs, outputs, 1, stride), bn2d(outputs)
      )

  def forward(self, x):
    y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
    y = self.bn3(self.conv2(y))
    y = self.se(y) if hasattr(self, "se") else y
    return y + (self.downsample(x) if hasattr(self, "downsample") else x)


class IResNet(nn.Module):
  def __init__(self, depths, reduction=0):
    super().__init__()
    self.conv1, self.bn1 = conv(3, 64, 3), bn2d(64)
    self.prelu = nn.PReLU(64)
    inputs = 64
    for stage, depth in enumerate(depths, start=1):
      outputs, blocks = 32 * 2**stage, []
      for i in range(depth):
        blocks.append(ResidualBlock(inputs, outputs, 1 if i else 2, reduction))
        inputs = outputs
      setattr(self, f"layer{stage}", nn.Sequential(*blocks))
    self.bn2 = bn2d(512)
    self.fc = nn.Linear(512 * 7 * 7, 512)
    self.features = nn.BatchNorm1d(512, eps=1e-5)

  def forward(self, x):
    x = self.prelu(self.bn1(self.conv1(x)))
    x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
    return self.features(self.fc(self.bn2(x).flatten(1)))


class Layers(nn.Module):
  """What published MobileFaceNets call `layers`."""

  def __init__(self, *parts, residual=False):
    super().__init__()
    self.layers = nn.Sequential(*parts)
    self.residual = residual

  def forward(self, x):
    return self.layers(x) + x if self.residual else self.layers(x)


def conv_block(inputs, outputs, size=1, stride=1, groups=1):
  return Layers(
    conv(inputs, outputs, size, stride, groups),
    bn2d(outputs),
    nn.PReLU(outputs),
  )


def bottleneck(inputs, outputs, within, stride):
  return Layers(
    conv_block(inputs, within),
    conv_block(within, within, 3, stride, within),
    Layers(conv(within, outputs, 1), bn2d(outputs)),
    residual=stride == 1,
  )


class MobileFaceNet(nn.Module):
  def __init__(self, depths=(1, 4, 6, 2)):
    super().__init__()
    first, second, third, fourth = (
      Layers(*(bottleneck(c, c, within, 1) for _ in range(depth)))
      for depth, c, within in zip(
        depths, (128, 128, 256, 256), (128, 128, 256, 256), strict=True
      )
    )
    if depths[0] == 1:
      first = conv_block(128, 128, 3, groups=64)
    self.layers = nn.ModuleList(
      [
        conv_block(3, 128, 3, 2),
        first,
        bottleneck(128, 128, 128, 2),
        second,
        bottleneck(128, 256, 256, 2),
        third,
        bottleneck(256, 256, 512, 2),
        fourth,
      ]
    )
    self.conv_sep = conv_block(256, 512)
    self.features = Layers(
      Layers(nn.Conv2d(512, 512, 7, groups=512, bias=False), bn2d(512)),
      nn.Flatten(),
      nn.Linear(512, 512, bias=False),
      nn.BatchNorm1d(512),
    )

  def forward(self, x):
    for layer in self.layers:
      x = layer(x)
    return self.features(self.conv_sep(x))


class Attention(nn.Module):
  def __init__(self, channels, heads):
    super().__init__()
    self.heads = heads
    self.qkv = nn.Linear(channels, 3 * channels, bias=False)
    self.proj = nn.Linear(channels, channels)

  def forward(self, x):
    query, key, value = (
      part.unflatten(2, (self.heads, -1)).transpose(1, 2)
      for part in self.qkv(x).chunk(3, dim=2)
    )
    # PyTorch's own, with its scale of 1 / sqrt(channels of a head).
    x = nn.functional.scaled_dot_product_attention(query, key, value)
    return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
  def __init__(self, channels):
    super().__init__()
    self.fc1 = nn.Linear(channels, 4 * channels)
    self.fc2 = nn.Linear(4 * channels, channels)

  def forward(self, x):
    return self.fc2(nn.functional.relu6(self.fc1(x)))


class TransformerBlock(nn.Module):
  def __init__(self, channels):
    super().__init__()
    self.norm1, self.attn = nn.LayerNorm(channels), Attention(channels, 8)
    self.norm2, self.mlp = nn.LayerNorm(channels), Mlp(channels)

  def forward(self, x):
    x = x + self.attn(self.norm1(x))
    return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
  def __init__(self, channels, depth):
    super().__init__()
    self.pos_embed = nn.Parameter(torch.zeros(1, 144, channels))
    self.mask_token = nn.Parameter(torch.zeros(1, 1, channels))
    self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, channels, 9, 9)})
    self.blocks = nn.Sequential(
      *(TransformerBlock(channels) for _ in range(depth))
    )
    self.norm = nn.LayerNorm(channels)
    self.feature = nn.Sequential(
      nn.Linear(144 * channels, channels, bias=False),
      nn.BatchNorm1d(channels, eps=2e-5),
      nn.Linear(channels, 512, bias=False),
      nn.BatchNorm1d(512, eps=2e-5),
    )

  def forward(self, x):
    x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
    x = self.norm(self.blocks(x + self.pos_embed))
    return self.feature(x.flatten(1))


# By the name that insightface gives them.
PUBLISHED = {
  "iresnet18": lambda: IResNet((2, 2, 2, 2)),
  "iresnet50": lambda: IResNet((3, 4, 14, 3)),
  "iresnet100": lambda: IResNet((3, 13, 30, 3)),
  "mbf": MobileFaceNet,
  "vit_t": lambda: ViT(256, 12),
  "vit_s": lambda: ViT(512, 12),
  "vit_b": lambda: ViT(512, 24),
}


def randomize(network, seed):
  """Random weights, and batch statistics at random around those of patterns.

  So activations keep a size near 1, as in trained networks.
  """
  generator = torch.Generator().manual_seed(seed)

  def normal(tensor, spread):
    return tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread)

  def uniform(tensor):
    return tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)

  with torch.no_grad():
    for module in network.modules():
      if isinstance(module, nn.Conv2d | nn.Linear):
        normal(module.weight, module.weight[0].numel() ** -0.5)
        if module.bias is not None:
          normal(module.bias, 0.1)
      elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        uniform(module.weight)
        normal(module.bias, 0.1)
        module.momentum = 1.0
      elif isinstance(module, nn.LayerNorm):
        uniform(module.weight)
        normal(module.bias, 0.1)
      elif isinstance(module, nn.PReLU):
        uniform(module.weight)
      elif isinstance(module, ViT):
        normal(module.pos_embed, 1.0)
        normal(module.mask_token, 1.0)
    # Coarse patterns: noise looks all alike to a network.
    patterns = 2 * torch.rand((16, 3, 8, 8), generator=generator) - 1
    patterns = patterns.repeat_interleave(14, 2).repeat_interleave(14, 3)
    network.train()(patterns)
    for kind in (nn.BatchNorm2d, nn.BatchNorm1d):
      network.eval()
      norms = [m for m in network.modules() if isinstance(m, kind)]
      if kind is nn.BatchNorm1d:  # Those before it have changed.
        for module in norms:
          module.train()
        network(patterns)
      for module in norms:
        spread = module.running_var.sqrt()
        module.running_mean += spread * normal(torch.empty_like(spread), 0.3)
        module.running_var *= uniform(torch.empty_like(spread))
  return network.eval()
