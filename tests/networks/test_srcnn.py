import pytest
import torch

from sr_lightning.networks import SRCNN, Bicubic


@pytest.mark.parametrize(("kernels", "count", "weights"), [((9, 1, 5), 8129, 8032), ((9, 5, 5), 57281, 57184)])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_number_of_parameters_is_the_papers(kernels, count, weights, scale):
    network = SRCNN(scale=scale, kernel_sizes=kernels)
    assert sum(p.numel() for p in network.parameters()) == count
    assert sum(p.numel() for p in network.parameters() if p.ndim == 4) == weights


@pytest.mark.parametrize("kernels", [(9, 1, 5), (9, 5, 5), (9, 3, 5)])
def test_training_mode_leaves_out_the_margin_that_padding_would_affect(kernels):
    network = SRCNN(scale=3, kernel_sizes=kernels, global_skip=True)
    lr = torch.rand(2, 1, 11, 13)
    trained, evaluated = network.train()(lr), network.eval()(lr)
    margin = sum(k // 2 for k in kernels)
    assert evaluated.shape == (2, 1, 33, 39)
    assert trained.shape == (2, 1, 33 - 2 * margin, 39 - 2 * margin)
    torch.testing.assert_close(trained, evaluated[..., margin:-margin, margin:-margin])


def test_the_papers_patch_of_33_pixels_gives_its_target_of_21():
    assert SRCNN(scale=3).train()(torch.rand(1, 1, 11, 11)).shape[-1] == 21


def test_global_skip_adds_the_bicubically_upscaled_input():
    network = SRCNN(scale=2, global_skip=True).eval()
    plain = SRCNN(scale=2).eval()
    lr = torch.rand(1, 1, 8, 9)
    torch.testing.assert_close(network(lr), Bicubic(scale=2)(lr))  # initially
    network.load_state_dict(plain.state_dict())
    torch.testing.assert_close(network(lr) - plain(lr), Bicubic(scale=2)(lr))


def test_init_std_gives_normal_weights_and_zero_biases():
    torch.manual_seed(0)
    network = SRCNN(scale=3, init_std=0.001)
    for conv in (network.conv1, network.conv2, network.conv3):
        assert conv.weight.std().item() == pytest.approx(0.001, rel=0.1)
        assert not conv.bias.any()


def test_even_kernels_and_missing_features_are_refused_with_their_values():
    with pytest.raises(ValueError, match=r"kernel_sizes=\[9, 2, 5\]"):
        SRCNN(scale=2, kernel_sizes=(9, 2, 5))
    with pytest.raises(ValueError, match=r"num_features=\[64\]"):
        SRCNN(scale=2, num_features=(64,))


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("kernel_sizes", [(9, 1, 5), (9, 5, 5), (1, 1, 1), (3, 1, 1), (7, 3, 5)])
def test_the_receptive_radius_is_exact_for_every_kernel(scale, kernel_sizes, measured_radius):
    network = SRCNN(scale=scale, num_features=(2, 2), kernel_sizes=kernel_sizes)
    assert measured_radius(network, network.receptive_radius + 2) == network.receptive_radius
