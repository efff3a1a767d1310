// Package xdsclient subscribes to resources of pilot over the delta variant of
// the aggregated discovery service, with acknowledgements. It is what the
// services of Writ use to get their configuration; proxies have a client of
// their own.
//
// Protocol: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol
package xdsclient

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/internal/rpc"
)

// Back-off between attempts to connect.
const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 2 * time.Second
)

// typePrefix begins every type URL.
const typePrefix = "type.googleapis.com/"

// Subscription asks for the resources of one type.
type Subscription struct {
	// Message is a message of the type; only its type counts.
	Message proto.Message
	// Names are the resources wanted; nil means all.
	Names []string
	// Apply is called with the whole set, by resource name, after each change
	// and once at the start even if the set is empty. An error is sent to pilot
	// as a refusal with that text; the set before it stays in force.
	Apply func(resources map[string]proto.Message) error
}

// typeURL is the type URL of the subscription's resources.
func (s Subscription) typeURL() string {
	return typePrefix + string(s.Message.ProtoReflect().Descriptor().FullName())
}

// Run keeps the subscriptions up to date until ctx ends: it reconnects for ever,
// with back-off and jitter, and goes on from the versions that it holds.
func Run(ctx context.Context, conn grpc.ClientConnInterface, nodeID string, log *slog.Logger, subs ...Subscription) error {
	c := &client{conn: conn, nodeID: nodeID, log: log, types: make(map[string]*typeState)}
	for _, s := range subs {
		c.types[s.typeURL()] = &typeState{sub: s, resources: make(map[string]proto.Message), versions: make(map[string]string)}
	}
	return rpc.Follow(ctx, log, "configuration", minBackoff, maxBackoff, c.stream)
}

type client struct {
	conn   grpc.ClientConnInterface
	nodeID string
	log    *slog.Logger
	types  map[string]*typeState
}

type typeState struct {
	sub       Subscription
	resources map[string]proto.Message
	versions  map[string]string
	applied   bool
}

// stream runs one stream to its end; worked tells whether a response came.
func (c *client) stream(ctx context.Context) (worked bool, err error) {
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(c.conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return false, err
	}
	node := &corev3.Node{Id: c.nodeID, UserAgentName: "writ"}
	for url, t := range c.types {
		req := &discoveryv3.DeltaDiscoveryRequest{
			Node: node, TypeUrl: url, InitialResourceVersions: maps.Clone(t.versions), ResourceNamesSubscribe: t.sub.Names,
		}
		if t.sub.Names == nil {
			req.ResourceNamesSubscribe = []string{"*"}
		}
		if err := s.Send(req); err != nil {
			return false, err
		}
	}
	for {
		resp, err := s.Recv()
		if err != nil {
			return worked, err
		}
		worked = true
		ack := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
		if err := c.apply(resp); err != nil {
			c.log.WarnContext(ctx, "configuration refused", slog.String("type", resp.GetTypeUrl()), slog.Any("error", err))
			ack.ErrorDetail = &statuspb.Status{Code: int32(codes.InvalidArgument), Message: err.Error()}
		}
		if err := s.Send(ack); err != nil {
			return worked, err
		}
	}
}

// apply works on copies, so that a refusal leaves everything as it was.
func (c *client) apply(resp *discoveryv3.DeltaDiscoveryResponse) error {
	t := c.types[resp.GetTypeUrl()]
	if t == nil {
		return fmt.Errorf("type %s was not asked for", resp.GetTypeUrl())
	}
	resources, versions := maps.Clone(t.resources), maps.Clone(t.versions)
	for _, r := range resp.GetResources() {
		m := t.sub.Message.ProtoReflect().New().Interface()
		if err := r.GetResource().UnmarshalTo(m); err != nil {
			return fmt.Errorf("resource %s: %w", r.GetName(), err)
		}
		resources[r.GetName()], versions[r.GetName()] = m, r.GetVersion()
	}
	for _, name := range resp.GetRemovedResources() {
		delete(resources, name)
		delete(versions, name)
	}
	if len(resp.GetResources())+len(resp.GetRemovedResources()) > 0 || !t.applied {
		if err := t.sub.Apply(maps.Clone(resources)); err != nil {
			return err
		}
	}
	t.resources, t.versions, t.applied = resources, versions, true
	return nil
}
