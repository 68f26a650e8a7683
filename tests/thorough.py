"""What `make test` leaves to `make test-all`: combinations of values that all occur in other cases, and the cases that
cost most and differ from others that stay in one setting.

What stays may be cases of another test, of which the reasons below tell. A test without cases has the marker itself.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

import pytest

# Names of cases as pytest prints them, by what stays.
LEFT_OUT = {
    "packed triangles, and smaller dense ones": (
        r"kernels/test_tril_gaussian\.py::test_tril_\w+\[dense-.*-65-",
        r"ops/test_tril_gaussian\.py::test_dtypes\[(?!dtype1).*-triton-dense",
        r"ops/test_gaussians_with_kl\.py::test_sample_and_density\w+\[sample_shape[12].*-dense-triton",
    ),
    "one sample, and four with given noise": (r"kernels/test_tril_gaussian\.py::test_tril_sample\w*\[\w+-3-False",),
    "triangles of 18 and 65 rows in the interpreter": (
        r"ops/test_tril_gaussian\.py::test_forward_and_backward\[batch\d-6[34]-.*-triton",
        r"ops/test_tril_gaussian\.py::test_forward_and_backward\[batch\d-65-.*-triton-dense",
    ),
    "divergences by sum": (r"ops/test_tril_gaussian\.py::test_(forward|dtypes).*with_kl_of_dimensions-triton",),
    "settings that are layouts of one argument in the interpreter": (
        r"ops/test_logistic_mixture\.py::test_layouts\[both-.*-triton",
    ),
    "the flow that runs all dimensions at once": (
        r"nn/test_flow_implementations\.py::test_implementations_agree\[(context|residual).*"
        r"(InverseAutoregressiveFlow-inverse|MaskedAutoregressiveFlow-forward)",
    ),
    "one system with two processes; they share its code": (
        r"recipes/test_(pixelvae_training|iaf_training|adgm|m2|draw)\.py::test_two_processes_train_as_one_with_the_joint_batch",
    ),
    "a layer of each kind with its weights in other hands": (
        r"pytorch/test_structure\.py::test_accelerate\[(?!MADE-|MaskedConv2d-|GatedPixelCNN-|FlowSequence-).*True",
    ),
    "a model whose dense kind is compiled": (r"recipes/test_hvi\.py::test_compiler_takes",),
    "networks whose layers are compiled alone": (
        r"pytorch/test_tracing\.py::test_(compile|export)\[(PixelCNNpp|GatedPixelCNN of a map)(-| log_prob-)False",
        r"pytorch/test_tracing\.py::test_onnx\[(InverseAutoregressiveFlow inverse|GatedMaskedConv2d)-True",
        r"pytorch/test_tracing\.py::test_(compile|export)\[(InverseAutoregressiveFlow inverse|GatedMaskedConv2d)-True",
    ),
    "compilation of the kernels": (
        r"(nn/test_gated_conv|nn/test_pixelcnn|ops/test_gated_activation|ops/test_masked_conv2d|nn/test_conv_flows)"
        r"\.py::test_compile_fullgraph\[.*reference",
    ),
    "gates of one layout": (r"ops/test_gated_activation\.py::test_compile_fullgraph\[.*layout1",),
    "options of one system; the others' are the same dataclasses": (
        r"recipes/test_bad_calls\.py::test_(values_out_of_range|inputs)\[.*train (?!pixelvae)",
    ),
    "three kinds of tensors that no kernel can read": (
        r"pytorch/test_tensors\.py::test_what_no_kernel_can_read\[(?!meta|quantised|sparse)",
    ),
    "one subject of each kind under tracers": (
        r"pytorch/test_tracing\.py::test_compile\[(?!PixelCNN-|MADE-|masked_|InverseAuto|tril_|DiagonalGaussian|Gated)"
        r".*-False-eager",
        r"pytorch/test_tracing\.py::test_(export|trace)\[(?!PixelCNN|MADE|masked_|InverseAuto|tril_|Diagonal|Gated)",
    ),
    "systems that learn, but the three largest, which other tests train": (
        r"recipes/test_learning\.py::test_\w+\[(iaf_vae|pixelvae|m1m2)\]",
    ),
    "noise of one op under Inductor": (r"ops/test_boundary\.py::test_compile_with_inductor_draws_noise\[tril",),
    "a step of one system": (r"recipes/test_pixelvae_training\.py::test_two_steps\[(?!vector)",),
    "one noise and few samples": (
        r"ops/test_gaussians_with_kl\.py::test_sample_and_density\w+\[sample_shape2.*-triton",
    ),
    "every extreme of one layout": (
        r"ops/test_logistic_mixture_values\.py::test_extremes\[.*dtype[12].*-triton",
        r"ops/test_gated_activation\.py::test_layouts\[.*(vector|map).*-triton",
    ),
    "batches of three and of seventeen": (r"ops/test_causal_sampler\.py::test_caches_change_nothing\[.*-1-reference",),
    "a fit of one posterior": (
        r"interop/test_pyro_distributions\.py::test_training_finds_the_posterior\[(?!packed-Trace_ELBO)",
    ),
    "launchers of packed triangles in every dtype": (r"kernels/test_tril_gaussian\.py::\w+_dtypes\[.*dense",),
    "two systems under every command": (
        r"recipes/test_systems\.py::test_commands_take_every_checkpoint\[(?!vae|pixelvae)",
    ),
    "commands of one system with classes": (r"recipes/test_analogies\.py::test_commands\[cvae",),
    "a posterior in closed form": (r"recipes/test_vae\.py::test_log_p_of_a_linear_gaussian_problem\[iaf",),
    "one build that is missing": (
        r"test_package\.py::test_what_is_wrong_with_the_extension_is_said\[_C\.cpython-3[0-9]m",
    ),
    "several processes evaluate one system": (
        r"recipes/test_evaluation\.py::test_shared_evaluation_has_the_figures_of_one_process\[(?!2-vae|3-vae)",
        r"recipes/test_evaluation\.py::test_command_line_goes_on_with_two_processes",
    ),
    "one subject of each family under tracers": (
        r"pytorch/test_tracing\.py::test_(compile|export|trace)\[(tril_gaussian_(log_prob|kl)|tril_.* dense|"
        r"DiagonalGaussian (moments|kl)|MADE residual|masked_linear with|PixelCNN log|PixelCNNpp|GatedPixelCNN of)",
        r"pytorch/test_tracing\.py::test_onnx\[(affine|gated_act|MADE res|\w+Flow (norm|inv|orth)|Householder|Linear"
        r"|Planar|Permut|Affine|ConvM|ConvI|DownS|DownR|CodeE|GatedM|GatedA|\w+ of |PixelCNNpp|Triang)",
    ),
    "one posterior is trained, and a run of it resumed": (
        r"recipes/test_training\.py::test_(training_raises_the_bound|resumed_run_has_the_losses\w+)\[(?!triangular)",
        r"recipes/test_pixelvae_training\.py::test_resumed_run_ends_as_an_unbroken_one\[(?!vector)",
    ),
    "one moment of a signal": (
        r"recipes/test_runs\.py::test_signal_between_checkpoints_loses_no_whole_epoch\[(?!2)",
        r"recipes/test_runs\.py::test_signal_leaves_a_checkpoint_that_resumes\[(?!1)",
    ),
    "one kind of tensors that no kernel can read": (
        r"pytorch/test_tensors\.py::test_what_no_kernel_can_read\[(?!meta)",
    ),
    "shards, not replicas": (r"pytorch/test_state\.py::test_two_processes\[replicas",),
    "one Gaussian compiled as a distribution": (
        r"distributions/test_protocol\.py::test_compile\[(?!packed-cpp|diagonal-cpp)",
    ),
    "one network of each kind is compiled whole": (
        r"nn/test_pixelcnn\.py::test_compile_fullgraph\[.*(?<!-GatedPixelCNN)\]$",
        r"nn/test_gated_conv\.py::test_compile_fullgraph\[(?!vector)",
        r"ops/test_masked_conv2d\.py::test_compile_fullgraph\[(?!colours)",
        r"ops/test_boundary\.py::test_compile_fullgraph\[tril_.*False",
    ),
    "the demonstration runs once": (
        r"recipes/test_demo\.py::test_demo_can_be_repeated",
        r"recipes/test_demo\.py::test_times_of_every_way\[False",
    ),
    "inexact functions in kernels whose elementary functions other cases have": (
        r"kernels/test_inexact_functions\.py::test_as_close_as_eager"
        r"\[(autoregressive|tril_gaussian(?! log_prob)|\w+, samples|masked_conv2d, )",
    ),
    "networks, kinds and batches of one launcher; the C++ op has them all": (
        r"kernels/test_autoregressive_flow\.py::test_forward_and_backward\[(?!flow-plain|flow-everything|made-interleaved)",
        r"kernels/test_autoregressive_flow\.py::test_kinds\[(?!location_only)",
        r"kernels/test_autoregressive_flow\.py::test_dtypes\[(?!everything-dtype2)",
        r"kernels/test_autoregressive_flow\.py::test_batches\[(?!batch0)",
        r"kernels/test_autoregressive_flow\.py::test_only_some_gradients_wanted\[(?!1)",
        r"kernels/test_autoregressive_flow\.py::test_(rows_that_are_split\[False|runs_are_repeatable)",
    ),
    "one form of a layer of a class compiled; tests of its launchers have all activations and dtypes": (
        r"ops/test_class_linear\.py::test_compile_fullgraph\[(?!each-cpp)",
        r"ops/test_class_linear\.py::test_(activations|dtypes|without_bias)\[.*triton",
        r"ops/test_class_linear\.py::test_forward_and_backward\[.*(300|4, 9|11, 65|2, 5, 3).*-triton",
        r"ops/test_class_linear\.py::test_gradcheck\[.*reference",
    ),
    "a layer with its Gaussian is compiled by one backend": (
        r"ops/test_linear_tril_gaussian\.py::test_compile_fullgraph\[inductor",
        r"nn/test_gaussian_sampling\.py::test_compile\[True",
    ),
    "every system learns once by default": (
        r"recipes/test_learning\.py::test_bound_is_above_that_of_independent_pixels"
        r"\[(vae, .*|hvi, .*|iwae, .*|draw, .*)\]",
        r"recipes/test_learning\.py::test_classes_are_learned\[adgm, ",
    ),
    "codes of one channel": (r"recipes/test_compress\.py::test_round_trip\[3-colored.*-reference",),
}


def is_left_out(name: str) -> bool:
    """Whether a reason above leaves out the case ``name``."""
    return any(re.search(pattern, name) for patterns in LEFT_OUT.values() for pattern in patterns)


def find_left_out(items: Iterable[pytest.Item]) -> Iterator[pytest.Item]:
    """The cases that ``make test`` leaves out, in the order of ``items``.

    Of a test with several parameters it runs as many cases as it takes for each value to occur, with each
    implementation.
    """
    seen: dict[tuple[str, str, str], set[tuple[int, str]]] = defaultdict(set)
    for item in items:
        if is_left_out(item.nodeid):
            yield item
            continue
        callspec = getattr(item, "callspec", None)
        if callspec is None:
            continue
        # pytest has no public list of a case's names, one for each decorator of its test.
        values = set(enumerate(callspec._idlist))
        met = seen[item.parent.nodeid, item.originalname, str(callspec.params.get("impl"))]
        if values <= met:
            yield item
        met |= values
