package xds

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"
)

// FuzzRequests has a client say anything, message after message: the server lives, and
// another client gets its configuration.
func FuzzRequests(f *testing.F) {
	seed := func(messages ...*discoveryv3.DeltaDiscoveryRequest) {
		var b bytes.Buffer
		for _, m := range messages {
			if _, err := protodelim.MarshalTo(&b, m); err != nil {
				f.Fatal(err)
			}
		}
		f.Add(b.Bytes())
	}
	node := &corev3.Node{Id: "sidecar~b"}
	seed(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: ClusterType, InitialResourceVersions: map[string]string{"x": "1", "": ""}}, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: ClusterType, ResponseNonce: "1", ErrorDetail: &status.Status{Message: "no"}})
	seed(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: ListenerType}, &discoveryv3.DeltaDiscoveryRequest{Node: node})
	seed(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: RouteType, ResourceNamesSubscribe: []string{"*", "", "r0", "r0"}, ResourceNamesUnsubscribe: []string{"*", "r0"}}, &discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "other"}, TypeUrl: "x"})
	f.Fuzz(func(t *testing.T, data []byte) {
		var messages []*discoveryv3.DeltaDiscoveryRequest
		for r := bytes.NewReader(data); r.Len() > 0 && len(messages) < 20; {
			m := new(discoveryv3.DeltaDiscoveryRequest)
			if protodelim.UnmarshalFrom(r, m) != nil || proto.Size(m) > 1<<16 {
				break
			}
			messages = append(messages, m)
		}
		bubble(t, func(t *testing.T) {
			b := newBench(t, Options{})
			b.publish(map[string]world{"sidecar~a": simple(2, 1), "sidecar~b": simple(2, 1)})
			conn := b.dial()
			defer func() { _ = conn.Close() }()
			ctx, end := context.WithCancel(t.Context())
			defer end()
			stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range messages {
				if stream.Send(m) != nil {
					break
				}
				synctest.Wait()
			}
			other := b.envoy("sidecar~a")
			synctest.Wait()
			b.publish(map[string]world{"sidecar~a": simple(2, 2), "sidecar~b": simple(2, 2)})
			synctest.Wait()
			other.wantState(b.snap.Proxies["sidecar~a"])
			other.disconnect()
		})
	})
}
