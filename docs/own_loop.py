"""Train a group of your own networks in your own loop: OKDDip with AdamW, a cosine schedule, warm-up and mixup.

It needs models/ and losses.py of this repository, PyTorch, torchvision and safetensors. ``student`` makes one of your
networks. ``images`` are float32 [N, 3, H, W], ``labels`` int64 [N].
"""

import torch
from torch.nn import functional as F

import models
from losses import okddip_loss, ramp_up


def train(student, images, labels, num_classes, branch_at, epochs=20, batch_size=64):
    """-> the group. ``group.student(-1)`` is the leader, the network to deploy."""
    group = models.OKDDip(student, num_classes, 4, branch_at=branch_at, image_size=images.shape[-1])
    optimizer = torch.optim.AdamW(group.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * (len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps, pct_start=0.1)
    for epoch in range(epochs):
        weight = ramp_up(epoch, epochs, length=epochs / 4)  # w(e): the group loss begins softly
        for batch in torch.randperm(len(images))[:len(images) // batch_size * batch_size].split(batch_size):
            x, y = images[batch], F.one_hot(labels[batch], num_classes).float()
            share = torch.distributions.Beta(0.2, 0.2).sample()  # mixup
            x, y = share * x + (1 - share) * x.flip(0), share * y + (1 - share) * y.flip(0)
            peers, targets, leader = group(x)  # [B, 3, C], [B, 3, C], [B, C]
            loss = okddip_loss(peers, targets, leader, y, weight)
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
            schedule.step()
    return group
