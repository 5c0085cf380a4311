"""grpc_endpoint: replies, facts and prompts of a real server. Its faults are tested through grpc_chat."""

import pytest
import serving
import tiny

from discovery.errors import EndpointError
from discovery.grpc_endpoint import GrpcEndpoint, Sampling

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name the sea."}]


def endpoint_of(server, **options):
    return GrpcEndpoint(f"grpc://{serving.target(server)}", **options)


async def test_a_reply_is_what_the_server_generates():
    async with serving.serving() as server, endpoint_of(server) as endpoint, serving.connect(server) as client:
        for options in ({"temperature": 0.0}, {"temperature": 0.9, "seed": 7, "top_p": 0.8}):
            reply = await endpoint.generate(MESSAGES, Sampling(12, **options), label="test")
            wanted = await client.complete(MESSAGES, max_tokens=12, **options)
            assert reply.text == wanted.text
            assert (reply.finish, reply.is_cut_off) == (wanted.finished.reason, wanted.finished.reason == "length")
            used = wanted.finished.usage
            assert (reply.prompt_tokens, reply.completion_tokens) == (used.prompt_tokens, used.completion_tokens)


async def test_no_monitor_of_the_servers_runs():
    """What is asked here would fill the journal with alerts."""
    async with serving.serving() as server, endpoint_of(server) as endpoint, serving.connect(server) as client:
        await endpoint.generate(MESSAGES, Sampling(12), label="test")
        ran = await client.complete(MESSAGES, max_tokens=12, temperature=0)
        assert [summary.monitor for summary in ran.finished.monitors if summary.fired] == [serving.ALWAYS]
        alerts = [s for f in server.registry.collect() for s in f.samples if s.name == "telltale_alerts_total"]
        assert sum(s.value for s in alerts if s.labels["monitor"] == serving.ALWAYS) == 1


async def test_what_is_served_is_told():
    async with serving.serving(slots=3) as server, endpoint_of(server) as endpoint:
        facts = await endpoint.facts()
    assert facts.model_name == "tiny"
    assert facts.model["weights_sha256"] == "0" * 64
    assert facts.model["quantization"] == "none"
    assert (facts.slots, facts.context_length) == (3, tiny.NUM_POSITIONS)


async def test_a_prompt_is_rendered_as_the_model_reads_it():
    async with serving.serving() as server, endpoint_of(server) as endpoint:
        rendered = await endpoint.render(MESSAGES, label="test")
    tokenizer = tiny.byte_tokenizer()
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert list(rendered.token_ids) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert rendered.text == text.replace("<|im_start|>", "").replace("<|im_end|>", "")


@pytest.mark.parametrize("url", ["127.0.0.1:1", "http://127.0.0.1:1", "grpc://127.0.0.1", "grpc://a:b", "grpc://a:1/x"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(EndpointError, match="endpoint must be grpc://HOST:PORT or grpcs://HOST:PORT"):
        GrpcEndpoint(url)
