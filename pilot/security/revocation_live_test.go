package security

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/internal/atomicfile"
	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
)

// TestRevokedLive: the one certificate, or all of the identity, and nobody else's; for
// callers without one nothing changes.
func TestRevokedLive(t *testing.T) {
	t.Parallel()
	eachEnvoy(t, func(t *testing.T, bin string) {
		a := newAuthority(t)
		pair := a.Pair(t, pkitest.Leaf(sleep, time.Hour))
		digest := sha256.Sum256(pair.Certificate[0])
		revoked := func(certificates []model.RevokedCertificate, identities ...string) inbound {
			m := newMesh(t, policy("a", "rules: [{}]"))
			m.Revoked.Certificates = certificates
			for _, id := range identities {
				m.Revoked.Identities = append(m.Revoked.Identities, model.RevokedIdentity{SPIFFEID: id})
			}
			out, err := compiler(t, m).HTTP(workload(), httpPort())
			if err != nil {
				t.Fatal(err)
			}
			return inbound{http: out, shared: true, mtls: true}
		}
		own := model.RevokedCertificate{Serial: "0a1b", SPIFFEID: sleep, SHA256: hex.EncodeToString(digest[:])}
		others := make([]model.RevokedCertificate, 2*maxNamedCertificates)
		for i := range others {
			others[i] = model.RevokedCertificate{Serial: fmt.Sprintf("%04x", 0x100+i), SPIFFEID: sleep, SHA256: fmt.Sprintf("%064x", i)}
		}
		inbounds := map[string]inbound{
			"nothing": revoked(nil), "serial": revoked([]model.RevokedCertificate{own}), "identity": revoked(nil, curlFoo, sleep),
			"others": revoked(others, curlFoo), "newest": revoked(slices.Concat(others, []model.RevokedCertificate{own})), "oldest": revoked(slices.Concat([]model.RevokedCertificate{own}, others)),
		}
		p := startUnder(t, bin, a, inbounds)
		// The revoked certificate calls from 127.0.0.3, another one of the identity from
		// 127.0.0.1.
		p.client(request{identity: sleep, from: "127.0.0.3"}).Transport.(*http.Transport).TLSClientConfig = &tls.Config{ //nolint:forcetypeassert // client makes it
			Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, //nolint:gosec // the server's name is not under test
		}
		for _, c := range []struct {
			name           string
			old, new, curl string
		}{
			{"nothing", "", "", ""},
			{"serial", "Revocation 0a1b", "", ""},
			{"identity", "Revocation " + sleep, "Revocation " + sleep, "Revocation " + curlFoo},
			{"others", "", "", "Revocation " + curlFoo},
			{"newest", "Revocation 0a1b", "", ""},
			{"oldest", fmt.Sprintf("Revocation one-of-%d-certificates", 1+maxNamedCertificates), "", ""},
		} {
			for who, r := range map[string]struct {
				request
				denied string
			}{
				"revoked": {request{identity: sleep, from: "127.0.0.3"}, c.old}, "fresh": {request{identity: sleep}, c.new},
				"curl": {request{identity: curlFoo}, c.curl}, "plain text": {request{}, ""},
			} {
				got := p.do(c.name, r.request)
				if want := r.denied != ""; got.deniedBy != r.denied || (got.status == http.StatusForbidden) != want {
					t.Errorf("%s, %s: got %d %q, want %q", c.name, who, got.status, got.deniedBy, r.denied)
				}
			}
		}
	})
}

// TestRevokedTCPLive: connections that are open end with the next thing that a revoked
// peer says, and those of others do not.
func TestRevokedTCPLive(t *testing.T) {
	t.Parallel()
	eachEnvoy(t, func(t *testing.T, bin string) {
		a := newAuthority(t)
		out, err := compiler(t, newMesh(t, "")).TCP(workload(), httpPort())
		if err != nil {
			t.Fatal(err)
		}
		file, port := filepath.Join(t.TempDir(), "eds.json"), echoServer(t)
		write := func(version string, r *model.Revoked) {
			t.Helper()
			writeEndpoints(t, file, version, &endpointv3.ClusterLoadAssignment{ClusterName: "line", Endpoints: []*endpointv3.LocalityLbEndpoints{{
				LbEndpoints: []*endpointv3.LbEndpoint{{
					Metadata:       RevokedMetadata(r),
					HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: envoy.SocketAddress("127.0.0.1", port)}},
				}},
			}}})
		}
		write("1", new(model.Revoked))
		p := startUnder(t, bin, a, map[string]inbound{"tcp": {tcp: out, mtls: true}}, &clusterv3.Cluster{
			Name: "line", ConnectTimeout: durationpb.New(5 * time.Second),
			ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: &corev3.ConfigSource{
				ResourceApiVersion:    corev3.ApiVersion_V3,
				ConfigSourceSpecifier: &corev3.ConfigSource_PathConfigSource{PathConfigSource: &corev3.PathConfigSource{Path: file}},
			}},
		})
		connect := func(id string) (tls.Certificate, func() error) {
			t.Helper()
			if id == "" {
				conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", p.address("tcp", false))
				if err != nil {
					t.Fatal(err)
				}
				return tls.Certificate{}, echo(t, conn)
			}
			config := a.client(t, id)
			conn, err := (&tls.Dialer{Config: config}).DialContext(t.Context(), "tcp", p.address("tcp", true))
			if err != nil {
				t.Fatal(err)
			}
			return config.Certificates[0], echo(t, conn)
		}
		pair, one := connect(sleep)
		_, same := connect(sleep)
		_, curl := connect(curlFoo)
		_, plain := connect("")
		check := func(when string, want map[string]bool) {
			t.Helper()
			proctest.Eventually(t, 10*time.Second, func() error {
				for name, speak := range map[string]func() error{"one": one, "same": same, "curl": curl, "plain": plain} {
					if err := speak(); (err == nil) != want[name] {
						return fmt.Errorf("%s: %s: %w", when, name, errors.Join(err, errors.New("unexpected")))
					}
				}
				return nil
			})
		}
		check("nothing is revoked", map[string]bool{"one": true, "same": true, "curl": true, "plain": true})
		digest := sha256.Sum256(pair.Certificate[0])
		certificate := model.RevokedCertificate{Serial: "0a", SPIFFEID: sleep, SHA256: hex.EncodeToString(digest[:])}
		write("2", &model.Revoked{Certificates: []model.RevokedCertificate{certificate}})
		check("a certificate is revoked", map[string]bool{"same": true, "curl": true, "plain": true})
		write("3", &model.Revoked{Identities: []model.RevokedIdentity{{SPIFFEID: sleep}}})
		check("an identity is revoked", map[string]bool{"curl": true, "plain": true})
	})
}

// TestRevokedServerTCPLive: connections that are open to a revoked server end with the
// next thing that the client says, and those to others do not.
func TestRevokedServerTCPLive(t *testing.T) {
	t.Parallel()
	eachEnvoy(t, func(t *testing.T, bin string) {
		a := newAuthority(t)
		pairs := map[string]tls.Certificate{"one": a.Pair(t, pkitest.Leaf(sleep, time.Hour)), "same": a.Pair(t, pkitest.Leaf(sleep, time.Hour)), "curl": a.Pair(t, pkitest.Leaf(curlFoo, time.Hour))}
		next := make(chan tls.Certificate, 1) // of the connection that comes next
		port := echoServerTLS(t, &tls.Config{SessionTicketsDisabled: true, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			pair := <-next
			return &pair, nil
		}})
		file := filepath.Join(t.TempDir(), "eds.json")
		write := func(version string, r *model.Revoked) {
			t.Helper()
			writeEndpoints(t, file, version, &endpointv3.ClusterLoadAssignment{ClusterName: "line", Endpoints: []*endpointv3.LocalityLbEndpoints{{
				LbEndpoints: []*endpointv3.LbEndpoint{{
					Metadata:       RevokedMetadata(r),
					HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: envoy.SocketAddress("127.0.0.1", port)}},
				}},
			}}})
		}
		write("1", new(model.Revoked))
		p := startUnder(t, bin, a, map[string]inbound{"tcp": {tcp: &TCP{Filters: []*listenerv3.Filter{RevokedServerTCP()}}}}, &clusterv3.Cluster{
			Name: "line", ConnectTimeout: durationpb.New(5 * time.Second),
			TransportSocket:      envoy.TransportSocket(&tlsv3.UpstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{}}),
			ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: &corev3.ConfigSource{
				ResourceApiVersion:    corev3.ApiVersion_V3,
				ConfigSourceSpecifier: &corev3.ConfigSource_PathConfigSource{PathConfigSource: &corev3.PathConfigSource{Path: file}},
			}},
		})
		speak := map[string]func() error{}
		for name, pair := range pairs {
			next <- pair
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", p.address("tcp", false))
			if err != nil {
				t.Fatal(err)
			}
			if speak[name] = echo(t, conn); speak[name]() != nil {
				t.Fatalf("%s: %v", name, speak[name]())
			}
		}
		check := func(when string, want map[string]bool) {
			t.Helper()
			proctest.Eventually(t, 10*time.Second, func() error {
				for name, speak := range speak {
					if err := speak(); (err == nil) != want[name] {
						return fmt.Errorf("%s: %s: %w", when, name, errors.Join(err, errors.New("unexpected")))
					}
				}
				return nil
			})
		}
		digest := sha256.Sum256(pairs["one"].Certificate[0])
		certificate := model.RevokedCertificate{Serial: "0a", SPIFFEID: sleep, SHA256: hex.EncodeToString(digest[:])}
		write("2", &model.Revoked{Certificates: []model.RevokedCertificate{certificate}})
		check("a certificate is revoked", map[string]bool{"same": true, "curl": true})
		write("3", &model.Revoked{Identities: []model.RevokedIdentity{{SPIFFEID: sleep}}})
		check("an identity is revoked", map[string]bool{"curl": true})
	})
}

// writeEndpoints replaces the file of an Envoy's endpoints.
func writeEndpoints(t *testing.T, file, version string, m *endpointv3.ClusterLoadAssignment) {
	t.Helper()
	text, err := protojson.Marshal(&discoveryv3.DiscoveryResponse{VersionInfo: version, TypeUrl: "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment", Resources: []*anypb.Any{envoy.Any(m)}})
	if err == nil {
		err = atomicfile.Write(file, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// echo sends a line over a connection and waits for it to come back.
func echo(t *testing.T, conn net.Conn) func() error {
	t.Cleanup(func() { _ = conn.Close() })
	read := bufio.NewReader(conn)
	return func() error {
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		if _, err := io.WriteString(conn, "hello\n"); err != nil {
			return err
		}
		_, err := read.ReadString('\n')
		return err
	}
}

// echoServer gives back what it gets.
func echoServer(t *testing.T) uint32 { return echoServerTLS(t, nil) }

// echoServerTLS does so over TLS, unless config is nil.
func echoServerTLS(t *testing.T, config *tls.Config) uint32 {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if config != nil {
		l = tls.NewListener(l, config)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer func() { _ = conn.Close() }()
				_, _ = io.Copy(conn, conn)
			})
		}
	})
	t.Cleanup(func() { _ = l.Close() }) // connections end with Envoy
	return uint32(netip.MustParseAddrPort(l.Addr().String()).Port())
}
