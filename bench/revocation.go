package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

const (
	// revocationRounds is how many certificates are revoked one after the other.
	revocationRounds = 10
	// revocationEnvoys and sdsClients are who has to know.
	revocationEnvoys = 20
	sdsClients       = 500
	// look is how often each Envoy is asked, on a connection that is open and on a new
	// one.
	look = 20 * time.Millisecond
	// revokedID is the path of the identity whose certificates are revoked.
	revokedID = "/ns/default/sa/revoked"
)

// revocation measures the time from the command that revokes a certificate to its
// refusal in every one of twenty real Envoys of a whole mesh, and from the call to the
// list in the hands of many clients of one node agent.
func revocation(ctx context.Context, o options) ([]row, error) {
	rows, err := revocationInMesh(ctx, o)
	if err != nil {
		return rows, err
	}
	times, err := revocationBySDS(ctx, o)
	if err != nil {
		return rows, err
	}
	return append(rows, goalRow(fmt.Sprintf("revocation to the list at %d clients of SDS", sdsClients), times, "goal 2 s for all")), nil
}

func goalRow(name string, times []time.Duration, goal string) row {
	r := latencies(name, times)
	r.note = strings.TrimSuffix(r.note, registrationGoal) + goal
	return r
}

func revocationInMesh(ctx context.Context, o options) ([]row, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "b") })}
	go func() { _ = server.Serve(l) }()
	defer func() { _ = server.Close() }()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	files := map[string]string{"mtls.yaml": strictMTLS}
	for i := range revocationEnvoys {
		files["workloads.yaml"] += fmt.Sprintf("---\napiVersion: local.writ.mesh/v1alpha1\nkind: LocalWorkload\nmetadata: {name: b%d, namespace: default, labels: {app: b}}\n"+
			"spec: {serviceAccount: b, ports: [{name: http, port: 8000, app: %s}]}\n", i, port)
	}
	m, err := upMesh(ctx, o, files)
	if err != nil {
		return nil, err
	}
	defer m.down()
	var all refusals
	for i := range revocationRounds {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		r, err := m.revoke(ctx, o)
		cancel()
		if err != nil {
			return nil, fmt.Errorf("revocation %d: %w", i+1, err)
		}
		all.add(r)
	}
	return all.rows(len(m.addresses)), nil
}

// revoke revokes a certificate that has a live connection to each Envoy, by the command,
// and gives when each Envoy refused it there and in a new connection.
func (m *runningMesh) revoke(ctx context.Context, o options) (refusals, error) {
	cert, serial, err := m.mint(ctx, revokedID)
	if err != nil {
		return refusals{}, err
	}
	var began time.Time
	start := make(chan struct{})
	ready := make(chan error, len(m.addresses))
	live, fresh, lost := make([]time.Duration, len(m.addresses)), make([]time.Duration, len(m.addresses)), make([]bool, len(m.addresses))
	errs := make([]error, 2*len(m.addresses))
	var wg sync.WaitGroup
	for i, address := range m.addresses {
		open, anew := httpsClient(cert, false), httpsClient(cert, true)
		defer open.CloseIdleConnections()
		wg.Go(func() {
			got, _, err := status(ctx, open, address)
			if err == nil && got != http.StatusOK {
				err = fmt.Errorf("%s answers %d before", address, got)
			}
			ready <- err
			<-start
			lost[i], errs[2*i] = refusedThere(ctx, open, address)
			live[i] = time.Since(began)
		})
		wg.Go(func() {
			<-start
			errs[2*i+1] = wait(ctx, address, func() (bool, string) {
				got, _, err := status(ctx, anew, address)
				return err != nil && ctx.Err() == nil, fmt.Sprint("new connection: ", got, err)
			})
			fresh[i] = time.Since(began)
		})
	}
	for range m.addresses {
		err = errors.Join(err, <-ready)
	}
	began = time.Now()
	close(start)
	if err == nil {
		var out []byte
		if out, err = exec.CommandContext(ctx, filepath.Join(o.bin, "writ"), "certs", "revoke", serial, m.dir).CombinedOutput(); err != nil { //nolint:gosec // a binary of this repository
			err = fmt.Errorf("%w: %s", err, out)
		}
	}
	wg.Wait()
	r := refusals{fresh: fresh}
	for i, took := range live {
		if lost[i] {
			r.lost = append(r.lost, took)
		} else {
			r.live = append(r.live, took)
		}
	}
	return r, errors.Join(err, errors.Join(errs...))
}

func httpsClient(cert tls.Certificate, anew bool) *http.Client {
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: anew, MaxConnsPerHost: 1, TLSClientConfig: &tls.Config{
		Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}, InsecureSkipVerify: true, //nolint:gosec // what the server thinks of the client is measured
	}}}
}

// wait asks every look until the answer is yes.
func wait(ctx context.Context, who string, ask func() (yes bool, is string)) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		yes, is := ask()
		if yes {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: %s: %w", who, is, ctx.Err())
		}
	}
}

// revocationBySDS has many clients of a real node agent wait for the list with each of
// several certificates that are revoked.
func revocationBySDS(ctx context.Context, o options) ([]time.Duration, error) {
	a, err := launchAuthority(ctx, o, filepath.Join(o.dir, "ca"))
	if err != nil {
		return nil, err
	}
	defer a.stop()
	if err := a.register(ctx, 1, func(int) *capb.PutRegistrationRequest {
		return &capb.PutRegistrationRequest{SpiffeId: "spiffe://" + trustDomain + "/ns/default/sa/clients", Node: realNode, Facts: []string{fmt.Sprint("unix:uid:", os.Getuid())}}
	}); err != nil {
		return nil, err
	}
	agent, err := launchNodeAgent(ctx, o, a)
	if err != nil {
		return nil, err
	}
	defer agent.stop()
	clients, err := connectSDS(ctx, agent.socket)
	defer func() {
		for _, c := range clients {
			c.close()
		}
	}()
	if err != nil {
		return nil, err
	}
	svids, err := mintAgents(ctx, a, revocationRounds)
	if err != nil {
		return nil, err
	}
	var times []time.Duration
	for i, svid := range svids {
		took := make([]time.Duration, len(clients))
		began := time.Now()
		_, err := capb.NewRevocationsClient(a.admin).Revoke(ctx, &capb.RevokeRequest{Subject: &capb.RevokeRequest_Serial{Serial: hex.EncodeToString(svid.Certificates[0].SerialNumber.Bytes())}})
		if err != nil {
			return nil, err
		}
		if err := parallel(ctx, len(clients), len(clients), func(_ context.Context, n int) error {
			err := clients[n].until(i + 1)
			took[n] = time.Since(began)
			return err
		}); err != nil {
			return nil, err
		}
		times = append(times, took...)
	}
	return slices.Clip(times), nil
}

// sdsClient is one Envoy's worth of SDS.
type sdsClient struct {
	conn   *grpc.ClientConn
	stream secretv3.SecretDiscoveryService_StreamSecretsClient
}

func (c *sdsClient) close() { _ = c.conn.Close() }

// connectSDS gives those that were connected also with an error.
func connectSDS(ctx context.Context, socket string) ([]*sdsClient, error) {
	var out []*sdsClient
	for range sdsClients {
		conn, err := grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return out, err
		}
		c := &sdsClient{conn: conn}
		out = append(out, c)
		if c.stream, err = secretv3.NewSecretDiscoveryServiceClient(conn).StreamSecrets(ctx); err != nil {
			return out, err
		}
		if err := c.stream.Send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"ROOTCA"}}); err != nil {
			return out, err
		}
		if err := c.until(0); err != nil {
			return out, err
		}
	}
	return out, nil
}

// until receives until there is a list with that many certificates.
func (c *sdsClient) until(revoked int) error {
	for {
		resp, err := c.stream.Recv()
		if err != nil {
			return err
		}
		if err := c.stream.Send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"ROOTCA"}, VersionInfo: resp.GetVersionInfo(), ResponseNonce: resp.GetNonce(), TypeUrl: resp.GetTypeUrl()}); err != nil {
			return err
		}
		for _, r := range resp.GetResources() {
			secret := new(tlsv3.Secret)
			if err := r.UnmarshalTo(secret); err != nil {
				return err
			}
			n, err := entries(secret.GetValidationContext().GetCrl().GetInlineBytes())
			if err != nil || n == revoked {
				return err
			}
		}
	}
}

// entries counts the certificates of the lists in PEM.
func entries(text []byte) (n int, err error) {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return n, nil
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return n, err
		}
		n, text = n+len(list.RevokedCertificateEntries), rest
	}
}
