"""The settings of a written answer, from the fields of a request and the limits of the server."""

from blip3o.generate.text_settings import TextSampling
from blip3o.serve.http.errors import invalid
from blip3o.serve.http.fields import TextSettings
from blip3o.serve.http.service import Service, new_seed

_USUAL_TEMPERATURE = 1.0
"""Of a request that asks for sampling and names no temperature, as OpenAI's is."""
_OF_IMAGES = ("num_inference_steps", "guidance_scale")


def text_sampling(
    service: Service,
    body: TextSettings,
    limit: tuple[str, int | None],
    stop: tuple[str, ...] = (),
) -> TextSampling:
    """Returns how to write the answers of a request: greedily, unless it asks for sampling.

    Args:
        service: knows the limits, and the model's own length of answers.
        body: what the request says.
        limit: name and value of the field with the most tokens of an answer.
        stop: texts that end an answer.

    Raises:
        ApiError: 400 for too many tokens, or a setting that is for images.
    """
    for name in _OF_IMAGES:
        if getattr(body, name) is not None:
            raise invalid(f"{name} is for answers with an image", name)
    name, asked = limit
    most = service.config.max_answer_tokens
    if asked is not None and asked > most:
        raise invalid(f"{name} must be at most {most}, got {asked}", name)
    longest = min(asked or service.sampling.max_new_tokens, most)
    temperature, top_p, top_k = body.temperature, body.top_p, max(body.top_k or 0, 0)
    if temperature is None:
        is_sampled = top_k > 0 or (top_p is not None and top_p < 1)
        temperature = _USUAL_TEMPERATURE if is_sampled else 0.0
    if temperature == 0 or top_p == 0:  # a share of 0 leaves the likeliest token alone
        return TextSampling(max_new_tokens=longest, stop=stop)
    return TextSampling(
        max_new_tokens=longest,
        temperature=temperature,
        top_p=1.0 if top_p is None else top_p,
        top_k=top_k,
        seed=new_seed() if body.seed is None else body.seed,
        stop=stop,
    )
