"""The remote procedures of Agent, Broker, Trace and Replay; apart, since a command needs none."""

from __future__ import annotations

from substrate_sdk._pb.substrate.agent.v1alpha1 import agent_pb2
from substrate_sdk._pb.substrate.broker.v1alpha1 import broker_pb2
from substrate_sdk._pb.substrate.replay.v1alpha1 import replay_pb2
from substrate_sdk._pb.substrate.trace.v1alpha1 import trace_pb2
from substrate_sdk.client.methods import Method

_AGENT = "/substrate.agent.v1alpha1.AgentService/"
_BROKER = "/substrate.broker.v1alpha1.BrokerService/"
_REPLAY = "/substrate.replay.v1alpha1.ReplayService/"
_TRACE = "/substrate.trace.v1alpha1.TraceService/"

CREATE_SESSION = Method(
    _AGENT + "CreateSession", agent_pb2.CreateSessionRequest, agent_pb2.CreateSessionResponse
)
END_SESSION = Method(
    _AGENT + "EndSession", agent_pb2.EndSessionRequest, agent_pb2.EndSessionResponse
)
EXPLAIN = Method(_BROKER + "Explain", broker_pb2.ExplainRequest, broker_pb2.ExplainResponse)
CHECK = Method(_BROKER + "Check", broker_pb2.CheckRequest, broker_pb2.CheckResponse)
START_REPLAY = Method(
    _REPLAY + "StartReplay", replay_pb2.StartReplayRequest, replay_pb2.StartReplayResponse
)
WATCH_REPLAY = Method(
    _REPLAY + "WatchReplay", replay_pb2.WatchReplayRequest, replay_pb2.WatchReplayResponse
)
GET_SPAN = Method(_TRACE + "GetSpan", trace_pb2.GetSpanRequest, trace_pb2.GetSpanResponse)
LIST_SPANS = Method(_TRACE + "ListSpans", trace_pb2.ListSpansRequest, trace_pb2.ListSpansResponse)
STREAM_EVENTS = Method(
    _TRACE + "StreamEvents", trace_pb2.StreamEventsRequest, trace_pb2.StreamEventsResponse
)
GET_OBJECT = Method(_TRACE + "GetObject", trace_pb2.GetObjectRequest, trace_pb2.GetObjectResponse)
VERIFY = Method(_TRACE + "Verify", trace_pb2.VerifyRequest, trace_pb2.VerifyResponse)
