package ca

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/placement"
	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/rpc"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

const (
	// registrationPrefix is that of the keys of registrations in the ledger.
	registrationPrefix = "registrations/"
	// registrationChunk is how many registrations one message has at most: with
	// facts of the greatest length it stays below 4 MiB.
	registrationChunk = 200
	// registrationWait bounds how long a change waits until it is in force here.
	registrationWait = 2 * time.Second
	// followRegistrations* bound how long the ledger is not asked again after it
	// did not tell of changes.
	followRegistrationsMin = 100 * time.Millisecond
	followRegistrationsMax = 5 * time.Second
)

// keptRegistration is what the ledger keeps of a registration, by its id.
type keptRegistration struct {
	SPIFFEID  string    `json:"spiffe_id"`
	Node      string    `json:"node,omitempty"`
	Facts     []string  `json:"facts"`
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by"`
}

func (k keptRegistration) proto(id string) *capb.Registration {
	return &capb.Registration{
		Id: id, SpiffeId: k.SPIFFEID, Node: k.Node, Facts: k.Facts,
		CreatedAt: timestamppb.New(k.CreatedAt), CreatedBy: k.CreatedBy,
	}
}

// readRegistration reads a document.
func readRegistration(d ledger.Document) (string, keptRegistration, error) {
	id := strings.TrimPrefix(d.Key, registrationPrefix)
	var k keptRegistration
	if err := json.Unmarshal(d.Value, &k); err != nil {
		return id, k, fmt.Errorf("registration %s in the ledger: %w", id, err)
	}
	return id, k, nil
}

// followRegistrations keeps table as the ledger has it until ctx ends.
func (a *Authority) followRegistrations(ctx context.Context, table *placement.Table) error {
	failed := func(err error) {
		a.log.WarnContext(ctx, "changes of registrations are not followed, will try again", slog.Any("error", err))
	}
	return watchDocuments(ctx, a.store, registrationPrefix, followRegistrationsMin, followRegistrationsMax, failed, func(u ledger.Update, all bool) error {
		a.applyRegistrations(ctx, table, u, all)
		return nil
	})
}

// applyRegistrations takes what the ledger tells; all says that it is everything.
// A document that cannot be used is left out: it gives nobody anything.
func (a *Authority) applyRegistrations(ctx context.Context, table *placement.Table, u ledger.Update, all bool) {
	var put []*placement.Registration
	var drop []string
	for _, d := range u.Put {
		id, k, err := readRegistration(d)
		var r *placement.Registration
		if err == nil {
			r, err = a.registration(k.SPIFFEID, k.Node, k.Facts)
		}
		if err == nil && r.ID != id {
			err = fmt.Errorf("registration %s in the ledger is that of %s", id, r.ID)
		}
		if err != nil {
			a.log.WarnContext(ctx, "registration is not used", slog.Any("error", err))
			drop = append(drop, id)
			continue
		}
		put = append(put, r)
	}
	for _, key := range u.Deleted {
		drop = append(drop, strings.TrimPrefix(key, registrationPrefix))
	}
	table.ChangeRegistrations(put, drop, all)
}

func (a *Authority) registration(rawID, node string, facts []string) (*placement.Registration, error) {
	id, err := spiffeid.FromString(rawID)
	if err != nil {
		return nil, fmt.Errorf("SPIFFE ID %q: %w", rawID, err)
	}
	return placement.NewRegistration(a.td, id, node, facts)
}

// forWorkloads tells whether workloads may have id at all: it is of the trust
// domain, and none of Writ's own.
func (a *Authority) forWorkloads(id spiffeid.ID) bool {
	return id.MemberOf(a.td) && id.Path() != "" && id.Path() != "/writ" && !strings.HasPrefix(id.Path(), "/writ/")
}

// registered is the change that makes a registration which is not there.
func registered(r *placement.Registration, value []byte, actor string, now time.Time) ledger.Change {
	key := registrationPrefix + r.ID
	return ledger.Change{
		If: map[string]uint64{key: 0},
		Entry: ledger.Entry{
			Kind: ledger.Registered, Time: now, Actor: actor, Subject: r.SPIFFEID.String(), Facts: r.Facts,
			Detail: map[string]string{"registration": r.ID, "node": r.Node},
		},
		Put: map[string][]byte{key: value},
	}
}

// unregistered is the change that drops a registration as it was read.
func unregistered(d ledger.Document, kept keptRegistration, actor string, now time.Time) ledger.Change {
	return ledger.Change{
		If: map[string]uint64{d.Key: d.Version},
		Entry: ledger.Entry{
			Kind: ledger.Unregistered, Time: now, Actor: actor, Subject: kept.SPIFFEID,
			Detail: map[string]string{"registration": strings.TrimPrefix(d.Key, registrationPrefix), "node": kept.Node},
		},
		Delete: []string{d.Key},
	}
}

// registrationServer implements writ.ca.v1.Registrations.
type registrationServer struct {
	capb.UnimplementedRegistrationsServer

	a     *Authority
	table *placement.Table
	audit func(ctx context.Context, method string, err error, attrs ...slog.Attr)
}

// PutRegistration implements writ.ca.v1.Registrations.
func (s *registrationServer) PutRegistration(ctx context.Context, req *capb.PutRegistrationRequest) (*capb.Registration, error) {
	r, err := s.put(ctx, req)
	s.audit(ctx, "PutRegistration", err, slog.String("spiffe_id", req.GetSpiffeId()), slog.String("registration", r.GetId()))
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (s *registrationServer) put(ctx context.Context, req *capb.PutRegistrationRequest) (*capb.Registration, error) {
	if (req.GetNode() == "") != req.GetAllNodes() {
		return nil, refuse(invalid, "name a node, or say that the registration is for all nodes, and not both")
	}
	r, err := s.a.registration(req.GetSpiffeId(), req.GetNode(), req.GetFacts())
	if err != nil {
		return nil, refuse(invalid, "%v", err)
	}
	now := s.a.now().UTC()
	kept := keptRegistration{SPIFFEID: r.SPIFFEID.String(), Node: r.Node, Facts: r.Facts, CreatedAt: now, CreatedBy: administrator(ctx)}
	value, err := json.Marshal(kept)
	if err != nil {
		return nil, refuse(internal, "the registration could not be written down; see the authority's log").because(err)
	}
	_, err = s.a.store.Commit(ctx, registered(r, value, kept.CreatedBy, now))
	switch {
	case errors.Is(err, ledger.ErrConflict): // it is there already
		return s.get(ctx, r.ID)
	case err != nil:
		return nil, recording(err)
	}
	s.inForce(ctx, r.ID, true)
	return kept.proto(r.ID), nil
}

func (s *registrationServer) get(ctx context.Context, id string) (*capb.Registration, error) {
	d, err := s.a.store.Get(ctx, registrationPrefix+id)
	switch {
	case errors.Is(err, ledger.ErrNoDocument):
		return nil, refuse(unavailable, "the registration was changed meanwhile; try again")
	case err != nil:
		return nil, recording(err)
	}
	_, kept, err := readRegistration(d)
	if err != nil {
		return nil, refuse(internal, "the registration cannot be read; see the authority's log").because(err)
	}
	return kept.proto(id), nil
}

// inForce waits until a change that is in the ledger is in force here, which takes
// a moment; with several authorities it takes the others one too.
func (s *registrationServer) inForce(ctx context.Context, id string, is bool) {
	if s.table == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, registrationWait)
	defer cancel()
	_ = s.table.HasRegistration(ctx, id, is)
}

// DeleteRegistration implements writ.ca.v1.Registrations.
func (s *registrationServer) DeleteRegistration(ctx context.Context, req *capb.DeleteRegistrationRequest) (*capb.DeleteRegistrationResponse, error) {
	err := s.drop(ctx, req.GetId())
	s.audit(ctx, "DeleteRegistration", err, slog.String("registration", req.GetId()))
	if err != nil {
		return nil, err
	}
	return &capb.DeleteRegistrationResponse{}, nil
}

func (s *registrationServer) drop(ctx context.Context, id string) error {
	if len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" {
		return refuse(invalid, "%.64q is no id of a registration: want 32 hexadecimal digits, as the list has them", id)
	}
	d, err := s.a.store.Get(ctx, registrationPrefix+id)
	switch {
	case errors.Is(err, ledger.ErrNoDocument):
		return refuse(invalid, "there is no registration %s", id)
	case err != nil:
		return recording(err)
	}
	_, kept, err := readRegistration(d)
	if err != nil {
		kept.SPIFFEID = "" // what cannot be read can still go
	}
	_, err = s.a.store.Commit(ctx, unregistered(d, kept, administrator(ctx), s.a.now().UTC()))
	switch {
	case errors.Is(err, ledger.ErrConflict):
		return refuse(unavailable, "the registration was changed meanwhile; try again")
	case err != nil:
		return recording(err)
	}
	s.inForce(ctx, id, false)
	return nil
}

// ListRegistrations implements writ.ca.v1.Registrations.
func (s *registrationServer) ListRegistrations(req *capb.ListRegistrationsRequest, stream grpc.ServerStreamingServer[capb.Registration]) error {
	docs, err := s.a.store.List(stream.Context(), registrationPrefix)
	s.audit(stream.Context(), "ListRegistrations", err)
	if err != nil {
		return recording(err)
	}
	for _, d := range docs {
		id, k, err := readRegistration(d)
		if err != nil {
			return refuse(internal, "registration %s cannot be read; see the authority's log", id).because(err)
		}
		if req.GetSpiffeId() != "" && req.GetSpiffeId() != k.SPIFFEID || req.GetNode() != "" && k.Node != "" && req.GetNode() != k.Node {
			continue
		}
		if err := stream.Send(k.proto(id)); err != nil {
			return err
		}
	}
	return nil
}

// nodeRegistrations implements writ.ca.v1.NodeRegistrations.
type nodeRegistrations struct {
	capb.UnimplementedNodeRegistrationsServer

	s *server
}

// methods says who may call what.
func (n *nodeRegistrations) methods() rpc.Methods {
	return rpc.Methods{capb.NodeRegistrations_WatchRegistrations_FullMethodName: rpc.AnyNode()}
}

// WatchRegistrations implements writ.ca.v1.NodeRegistrations. The node is that of
// the caller's certificate.
func (n *nodeRegistrations) WatchRegistrations(req *capb.WatchRegistrationsRequest, stream grpc.ServerStreamingServer[capb.RegistrationUpdate]) error {
	ctx := stream.Context()
	if err := n.s.fresh(ctx); err != nil {
		return err
	}
	node, ok := identity.NodeOf(rpc.CallerFrom(ctx).ID)
	if !ok {
		return refuse(denied, "%s is no node agent", rpc.CallerFrom(ctx).ID)
	}
	// Without them everything would seem to be dropped.
	select {
	case <-n.s.placed.Loaded():
	case <-ctx.Done():
		return ctx.Err()
	case <-n.s.stopping:
		return refuse(unavailable, "the authority is stopping; connect again")
	}
	now, follower := n.s.placed.Follow(node)
	defer follower.Close()
	if err := sendRegistrations(stream, now, req.GetDigest()); err != nil {
		return err
	}
	for {
		select {
		case <-follower.More():
		case <-ctx.Done():
			return ctx.Err()
		case <-n.s.stopping:
			return refuse(unavailable, "the authority is stopping; connect again")
		}
		put, dropped := follower.Take()
		if err := sendUpdate(stream, &capb.RegistrationUpdate{Delete: dropped}, put); err != nil {
			return err
		}
	}
}

// sendRegistrations sends a full list to who does not have it.
func sendRegistrations(stream grpc.ServerStreamingServer[capb.RegistrationUpdate], now []*placement.Registration, has []byte) error {
	h := sha256.New()
	for _, r := range now {
		_, _ = h.Write([]byte(r.ID + "\n"))
	}
	if bytes.Equal(h.Sum(nil), has) {
		return stream.Send(&capb.RegistrationUpdate{Complete: true})
	}
	return sendUpdate(stream, &capb.RegistrationUpdate{Full: true}, now)
}

// sendUpdate sends put in messages of bounded size, the first of which is u.
func sendUpdate(stream grpc.ServerStreamingServer[capb.RegistrationUpdate], u *capb.RegistrationUpdate, put []*placement.Registration) error {
	for {
		part := put[:min(len(put), registrationChunk)]
		put = put[len(part):]
		for _, r := range part {
			u.Put = append(u.Put, &capb.Registration{Id: r.ID, SpiffeId: r.SPIFFEID.String(), Facts: r.Facts})
		}
		u.Complete = len(put) == 0
		if err := stream.Send(u); err != nil || u.GetComplete() {
			return err
		}
		u = new(capb.RegistrationUpdate)
	}
}
