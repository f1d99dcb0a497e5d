"""The paper's equations against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from cohortseg import losses
from cohortseg.losses import IGNORE
from cohortseg.models.vqvae import nearest_code


def logits_of(prob: list[list[float]]) -> torch.Tensor:
    """(pixels, classes) probabilities as logits of one image of one row: (1, C, 1, W)."""
    return torch.tensor(prob, dtype=torch.float64).log().t()[None, :, None, :]


def labels_of(*values: int) -> torch.Tensor:
    return torch.tensor([[list(values)]])


def test_equation_1_takes_the_nearest_code():
    codes = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    latents = torch.tensor([[0.4, 0.0], [0.6, 0.0], [3.0, 3.0]])
    assert nearest_code(latents, codes).tolist() == [0, 2, 1]


def test_equation_2_adds_its_three_terms_with_beta():
    images, reconstruction = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 2.0)
    latents, codes = torch.zeros(1, 3, 1, 1, requires_grad=True), torch.ones(1, 3, 1, 1, requires_grad=True)
    codebook, commitment = losses.codebook_loss(latents, codes), losses.commitment_loss(latents, codes)
    loss = losses.vq_loss(images, reconstruction, codebook, commitment, beta=0.25)
    assert loss.item() == pytest.approx(4.0 + 1.0 + 0.25)
    loss.backward()
    # sg[.]: the codebook term moves codes only, the commitment term latents only, with a quarter of the strength
    assert codes.grad is not None
    assert latents.grad is not None
    torch.testing.assert_close(codes.grad, torch.full_like(codes, 2 / 3))
    torch.testing.assert_close(latents.grad, torch.full_like(latents, -0.25 * 2 / 3))


def test_equation_3_counts_pixels_and_leaves_ignored_ones_out():
    proportions = losses.class_proportions(labels_of(0, 0, 1, 2, IGNORE))
    torch.testing.assert_close(proportions, torch.tensor([[0.5, 0.25, 0.25]]))
    assert losses.class_proportions(labels_of(IGNORE, IGNORE)).tolist() == [[0.0, 0.0, 0.0]]


def test_equations_8_to_10_cross_entropy_is_conditional_entropy_plus_the_label_marginal():
    """CE = H(F|K) - sum_k y_k log p_k with H(F|K) of (8), on random maps; (9) differs by the constant sum y log y."""
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(1, 3, 16, 16, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (1, 16, 16), generator=generator)
    prob = logits.softmax(dim=1)
    marginal = prob.mean(dim=(2, 3))  # p_k
    picked = prob.gather(1, labels[:, None])[:, 0]
    entropy = -(picked / marginal[0][labels]).log().mean()  # equation (8), first line
    y = losses.class_proportions(labels).double()
    divergence = losses.label_marginal_divergence(logits, labels)
    torch.testing.assert_close(losses.cross_entropy(logits, labels), entropy + divergence - torch.xlogy(y, y).sum())


def test_equation_9_by_hand():
    # p = (0.6, 0.25, 0.15) and y = (0.5, 0.5, 0) as for equation (11); an image without labels adds 0 to the mean
    logits = logits_of([[0.8, 0.1, 0.1], [0.4, 0.4, 0.2]])
    by_hand = 0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.25)
    assert losses.label_marginal_divergence(logits, labels_of(0, 1)).item() == pytest.approx(by_hand)
    both = torch.cat([logits, logits]), torch.cat([labels_of(0, 1), labels_of(IGNORE, IGNORE)])
    assert losses.label_marginal_divergence(*both).item() == pytest.approx(by_hand / 2)


def test_equation_11_squares_the_error_of_the_proportions():
    # two pixels, p = mean of (0.8, 0.1, 0.1) and (0.4, 0.4, 0.2) = (0.6, 0.25, 0.15); y = (0.5, 0.5, 0)
    loss = losses.proportion_loss(logits_of([[0.8, 0.1, 0.1], [0.4, 0.4, 0.2]]), labels_of(0, 1))
    assert loss.item() == pytest.approx(0.1**2 + 0.25**2 + 0.15**2)


def test_equation_11_over_trusted_pixels_only():
    # the second pixel is not trusted: p = (0.8, 0.1, 0.1), y = (1, 0, 0)
    loss = losses.proportion_loss(logits_of([[0.8, 0.1, 0.1], [0.4, 0.4, 0.2]]), labels_of(0, IGNORE))
    assert loss.item() == pytest.approx(0.2**2 + 0.1**2 + 0.1**2)
    nothing = losses.proportion_loss(logits_of([[0.8, 0.1, 0.1]]).requires_grad_(), labels_of(IGNORE))
    assert nothing.item() == 0.0


def test_equation_11_takes_each_image_by_its_own_trusted_pixels():
    logits = logits_of([[0.8, 0.1, 0.1], [0.4, 0.4, 0.2]])
    images = [labels_of(0, IGNORE), labels_of(0, 1)]
    both = losses.proportion_loss(torch.cat([logits, logits]), torch.cat(images))
    assert both.item() == pytest.approx(np.mean([losses.proportion_loss(logits, labels).item() for labels in images]))


def test_equation_12_by_hand():
    confidence_logits = torch.tensor([[[[0.0, math.log(3.0)]]]])  # D = 1/2, 3/4
    assert losses.adversarial_loss(confidence_logits).item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_equation_13_keeps_only_trusted_pixels():
    logits = logits_of([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.2, 0.6, 0.2]])
    confidence_logits = torch.tensor([[[[math.log(1 / 9), math.log(1 / 3), 0.0]]]])  # D = 0.1, 0.25, 0.5
    pseudo = losses.refined_pseudo_labels(logits, confidence_logits, threshold=0.2)
    assert pseudo.tolist() == [[[IGNORE, 2, 1]]]
    loss = losses.semi_loss(logits, pseudo, torch.tensor(2.0))
    assert loss.item() == pytest.approx((-math.log(0.7) - math.log(0.6)) / 2)


def test_equation_13_without_a_trusted_pixel_has_zero_loss_and_a_zero_gradient_not_none():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    pseudo = torch.full((1, 4, 4), IGNORE)
    loss = losses.semi_loss(logits, pseudo, torch.tensor(0.0))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.abs().max().item() == 0.0


def test_equation_14_by_hand():
    predicted, truth = torch.tensor([[[[0.0]]]]), torch.tensor([[[[math.log(3.0)]]]])  # D = 1/2 and 3/4
    loss = losses.discriminator_loss(predicted, truth)
    assert loss.item() == pytest.approx(-math.log(1 - 0.5) - math.log(0.75))


def test_truth_is_shown_as_soft_as_the_prediction():
    """Luc et al. 2016: a sure and right pixel stays as predicted; elsewhere the right class is raised to tau."""
    prob = torch.tensor([[0.9, 0.06, 0.04], [0.6, 0.3, 0.1], [0.0, 0.0, 1.0]]).t()[None, :, None, :]
    shown = losses.softened_truth(labels_of(0, 1, 2), prob, confidence=0.8)[0, :, 0].t()
    expected = torch.tensor([[0.9, 0.06, 0.04], [0.2 * 6 / 7, 0.8, 0.2 / 7], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(shown, expected)
    one_hot = losses.softened_truth(labels_of(0, 1, 2), prob, confidence=1.0)[0, :, 0].t()
    torch.testing.assert_close(one_hot, torch.eye(3))


def test_soft_dice_of_a_perfect_prediction_is_zero_and_empty_classes_cost_nothing():
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[0, :2] = 1
    perfect = 50.0 * torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2)
    assert losses.soft_dice_loss(perfect.float(), labels).item() == pytest.approx(0.0, abs=1e-6)


def test_soft_dice_counts_both_classes_of_every_image():
    prob = np.random.default_rng(0).dirichlet((1, 1, 1), size=(2, 4))  # (B, pixels, K)
    truth = np.array([[0, 1, 2, 2], [1, 0, 0, 1]])
    smooth = 1e-3 * 4
    dice = [
        (2 * prob[b, truth[b] == k, k].sum() + smooth) / (prob[b, :, k].sum() + (truth[b] == k).sum() + smooth)
        for b in range(2)
        for k in (1, 2)
    ]
    logits = torch.tensor(prob).log().permute(0, 2, 1)[:, :, None]
    found = losses.soft_dice_loss(logits, torch.tensor(truth)[:, None])
    assert found.item() == pytest.approx(1 - np.mean(dice))


def test_equation_12_is_a_mean_over_images_too():
    sure, unsure = torch.full((1, 1, 2, 2), 3.0), torch.zeros(1, 1, 2, 2)
    expected = (losses.adversarial_loss(sure) + losses.adversarial_loss(unsure)) / 2
    assert losses.adversarial_loss(torch.cat([sure, unsure])).item() == pytest.approx(expected.item())


def test_no_gradient_reaches_the_prediction_through_the_softened_truth():
    prob = torch.full((1, 3, 1, 2), 1 / 3, requires_grad=True)
    assert not losses.softened_truth(labels_of(0, 1), prob, 0.9).requires_grad


def test_opacity_dice_asks_for_the_outline_and_not_for_the_split():
    """p of lesion .5, .5, 1, 1 over a truth of lesion in two of four pixels: 1 - (2 x 1.5 + s) / (3 + 2 + s)."""
    prob = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.1, 0.4], [1e-9, 0.9, 0.1], [1e-9, 0.2, 0.8]])
    logits = prob.log().t()[None, :, None, :]
    smooth = 1e-3 * 4
    expected = 1 - (2 * 1.5 + smooth) / (3 + 2 + smooth)
    for labels in (labels_of(0, 1, 2, 0), labels_of(0, 2, 1, 0)):
        assert losses.opacity_dice_loss(logits, labels).item() == pytest.approx(expected)


def test_a_false_positive_on_an_image_without_lesion_is_pushed_down():
    for loss in (losses.soft_dice_loss, losses.opacity_dice_loss, losses.cross_entropy, losses.proportion_loss):
        logits = torch.zeros(1, 3, 8, 8)
        logits[:, 1], logits[:, 2] = 2.0, -20.0
        logits.requires_grad_()
        loss(logits, torch.zeros(1, 8, 8, dtype=torch.long)).backward()
        assert logits.grad is not None
        assert (logits.grad[:, 1] > logits.grad[:, 0]).all(), loss.__name__
        assert logits.grad[:, 1].sum() > 0, loss.__name__


@pytest.mark.parametrize(
    "loss",
    [
        lambda logits: losses.proportion_loss(logits, labels_of(0, 1, IGNORE)),
        lambda logits: losses.cross_entropy(logits, labels_of(0, 1, 2)),
        lambda logits: losses.soft_dice_loss(logits, labels_of(0, 1, 2)),
        lambda logits: losses.opacity_dice_loss(logits, labels_of(0, 1, 2)),
        lambda logits: losses.adversarial_loss(logits[:, :1]),
        lambda logits: losses.semi_loss(logits, labels_of(0, IGNORE, 2), torch.tensor(2.0)),
        lambda logits: losses.discriminator_loss(logits[:, :1], logits[:, 1:2]),
    ],
)
def test_gradients_are_those_of_the_formula(loss):
    logits = torch.tensor(np.random.default_rng(0).normal(size=(1, 3, 1, 3)), requires_grad=True)
    assert torch.autograd.gradcheck(loss, (logits,))
