"""A place that heads come from. torch is loaded when a head is made, so that `vcls convert --help` stays fast."""

from vllm_cls import (
    ConfigError,
    Head,
    HeadOption,
    HeadRequest,
    HeadResult,
    HeadSource,
    LinearHead,
    hookimpl,
)


def nearest_mean(request: HeadRequest) -> HeadResult:
    """A label's logit grows with how near the text's state is to the mean state of the label's rows."""
    import torch

    sharpness = request.options["sharpness"]
    if sharpness < 1:
        raise ConfigError(f"--sharpness {sharpness} must be at least 1.")
    states, _ = request.states(request.options["prompts"])
    labels, targets = list(request.labels), torch.tensor(request.options["targets"])  # indices of labels
    means = torch.stack([states[targets == index].mean(0) for index in range(len(labels))])
    bias = -sharpness / 2 * means.square().sum(1) if request.options["lengths"] else None
    told = f"The mean states of {len(targets)} rows of `{request.options['train_name']}`."
    head = Head("nearest-mean", LinearHead(sharpness * means, bias), description=told)
    return HeadResult(head, labels, request.problem_type)


@hookimpl
def vcls_head_sources() -> dict[str, HeadSource]:
    return {
        "nearest-mean": HeadSource(
            nearest_mean,
            "the mean states of the rows of --train, by label",
            needs=("train",),
            options=(
                HeadOption("sharpness", "Factor of the logits, at least 1.", int, 1),
                HeadOption("lengths", "Take the lengths of the means into account.", bool, True),
            ),
            example="vcls convert my-toy-model my-classifier --head nearest-mean --train rows.jsonl --sharpness 3",
            card="A label's score tells how near a text is to the label's rows.",
        )
    }
