package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// parked is how long a caller has asked before its registration is made.
const parked = 20 * time.Millisecond

// registering makes registrations for a real node agent, one after the other, while
// others are connected.
type registering struct {
	a      *authority
	agent  *nodeAgent
	bundle *x509bundle.Bundle
	// client is who calls an Envoy that has its certificate.
	client *x509svid.SVID
	n      int // registrations made
}

// registration measures the time from the call that registers an identity to a
// certificate in the hands of who waits for it: a client of SDS, and a real Envoy that
// serves with it.
func registration(ctx context.Context, o options) ([]row, error) {
	a, err := launchAuthority(ctx, o, o.dir)
	if err != nil {
		return nil, err
	}
	defer a.stop()
	const connected = 1000
	if err := a.register(ctx, 10*connected, func(i int) *capb.PutRegistrationRequest {
		return &capb.PutRegistrationRequest{
			SpiffeId: fmt.Sprintf("spiffe://%s/ns/default/sa/other-%d", trustDomain, i), Node: agentName(i % connected),
			Facts: []string{"unix:uid:1000", fmt.Sprintf("unix:path:/opt/other/%d", i)},
		}
	}); err != nil {
		return nil, fmt.Errorf("register: %w", err)
	}
	g, err := connectAgents(ctx, a, connected)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	defer g.close()
	r := &registering{a: a}
	if r.bundle, err = a.bundle(); err != nil {
		return nil, err
	}
	svids, err := mintAgents(ctx, a, 1)
	if err != nil {
		return nil, err
	}
	r.client = svids[0]
	if r.agent, err = launchNodeAgent(ctx, o, a); err != nil {
		return nil, err
	}
	defer r.agent.stop()
	times, err := r.repeat(ctx, o.registered, r.bySDS)
	if err != nil {
		return nil, err
	}
	rows := []row{latencies(fmt.Sprintf("registration to certificate, %d agents", connected), times)}
	envoy, err := findEnvoy()
	if err != nil {
		return rows, err
	}
	programs, _, err := linkProgram(envoy, o.dir, "envoy", o.envoys)
	if err != nil {
		return rows, err
	}
	if times, err = r.repeat(ctx, len(programs), func(ctx context.Context) (time.Duration, error) { return r.byEnvoy(ctx, o, programs) }); err != nil {
		return rows, err
	}
	return append(rows, latencies("registration to an Envoy that serves with it", times)), g.err()
}

// registrationGoal is what the rows of this file are held to.
const registrationGoal = "goal p99 500 ms"

func latencies(name string, times []time.Duration) row {
	slices.Sort(times)
	at := func(share float64) float64 {
		return float64(times[min(int(share*float64(len(times))), len(times)-1)]) / float64(time.Millisecond)
	}
	return row{name: name, note: fmt.Sprintf("p50 %.1f ms, p99 %.1f ms, max %.1f ms of %d; "+registrationGoal, at(0.5), at(0.99), at(1), len(times))}
}

func (r *registering) repeat(ctx context.Context, n int, once func(context.Context) (time.Duration, error)) ([]time.Duration, error) {
	times := make([]time.Duration, 0, n)
	for i := range n {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		took, err := once(ctx)
		cancel()
		if err != nil {
			return nil, fmt.Errorf("registration %d: %w", i+1, err)
		}
		times = append(times, took)
	}
	return times, nil
}

// put registers an identity that was not there before.
func (r *registering) put(ctx context.Context, facts ...string) (id, registration string, err error) {
	r.n++
	id = fmt.Sprintf("spiffe://%s/ns/default/sa/new-%d", trustDomain, r.n)
	resp, err := capb.NewRegistrationsClient(r.a.admin).PutRegistration(ctx, &capb.PutRegistrationRequest{SpiffeId: id, Node: realNode, Facts: facts})
	return id, resp.GetId(), err
}

func (r *registering) drop(ctx context.Context, registration string) error {
	_, err := capb.NewRegistrationsClient(r.a.admin).DeleteRegistration(ctx, &capb.DeleteRegistrationRequest{Id: registration})
	return err
}

// bySDS is this process as a client of SDS that asks, waits, is registered, and has a
// certificate that verifies.
func (r *registering) bySDS(ctx context.Context) (time.Duration, error) {
	conn, err := grpc.NewClient(r.agent.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	s, err := secretv3.NewSecretDiscoveryServiceClient(conn).StreamSecrets(ctx)
	if err != nil {
		return 0, err
	}
	if err := s.Send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"default"}}); err != nil {
		return 0, err
	}
	if err := pause(ctx, parked); err != nil {
		return 0, err
	}
	begin := time.Now()
	id, registration, err := r.put(ctx, fmt.Sprint("unix:uid:", os.Getuid()))
	if err != nil {
		return 0, err
	}
	resp, err := s.Recv()
	if err != nil {
		return 0, err
	}
	if err := r.verify(resp, id); err != nil {
		return 0, err
	}
	took := time.Since(begin)
	if err := r.drop(ctx, registration); err != nil {
		return 0, err
	}
	_, err = s.Recv() // that it is nobody's certificate any more
	if err == nil {
		return 0, errors.New("the stream goes on without a registration")
	}
	return took, nil
}

func (r *registering) verify(resp *discoveryv3.DiscoveryResponse, id string) error {
	if len(resp.GetResources()) != 1 {
		return fmt.Errorf("%d secrets, want one", len(resp.GetResources()))
	}
	secret := new(tlsv3.Secret)
	if err := resp.GetResources()[0].UnmarshalTo(secret); err != nil {
		return err
	}
	c := secret.GetTlsCertificate()
	svid, err := x509svid.Parse(c.GetCertificateChain().GetInlineBytes(), c.GetPrivateKey().GetInlineBytes())
	if err != nil {
		return err
	}
	got, _, err := x509svid.Verify(svid.Certificates, r.bundle)
	if err == nil && got.String() != id {
		err = fmt.Errorf("the certificate is for %s, want %s", got, id)
	}
	return err
}

// byEnvoy starts an Envoy that waits for its certificate, registers it, and calls it
// until it answers.
func (r *registering) byEnvoy(ctx context.Context, o options, programs []string) (took time.Duration, err error) {
	program := programs[r.n%len(programs)]
	e, err := launchEnvoy(ctx, program, filepath.Join(o.dir, "envoy.yaml"), r.agent.socket)
	if err != nil {
		return 0, err
	}
	defer e.stop()
	if err := e.asks(ctx); err != nil {
		return 0, err
	}
	begin := time.Now()
	id, registration, err := r.put(ctx, fmt.Sprint("unix:uid:", os.Getuid()), "unix:path:"+program)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.drop(ctx, registration)) }()
	if err := e.answers(ctx, r.client, r.bundle, id); err != nil {
		return 0, err
	}
	return time.Since(begin), nil
}
