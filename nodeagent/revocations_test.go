package nodeagent_test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/nodeagent/latest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
	nodeagentpb "github.com/writ-mesh/writ/proto/writ/nodeagent/v1"
)

// fakeFeed tells what a test says is revoked.
type fakeFeed struct {
	capb.UnimplementedRevocationFeedServer
	list latest.Value[*capb.RevocationList]
}

func (f *fakeFeed) WatchRevocations(_ *capb.WatchRevocationsRequest, s grpc.ServerStreamingServer[capb.RevocationList]) error {
	for {
		l, changed := f.list.Get()
		if l != nil {
			if err := s.Send(l); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}

// crlOf signs a list with one certificate.
func crlOf(t *testing.T, root *pkitest.Root, serial int64) []byte {
	t.Helper()
	der, err := root.CRL(&x509.RevocationList{
		Number: big.NewInt(serial), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(serial), RevocationTime: time.Now()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestRevocationListsReachProxies: lists that are right go along with the bundle, those
// that are not change nothing, and neither keeps a certificate or a bundle away.
func TestRevocationListsReachProxies(t *testing.T) {
	t.Parallel()
	r := newOwnRig(t)
	r.start(t)
	client := secretv3.NewSecretDiscoveryServiceClient(r.dial(t))
	d, err := client.DeltaSecrets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"ROOTCA"}}); err != nil {
		t.Fatal(err)
	}
	next := func(refuse bool) *tlsv3.CertificateValidationContext {
		t.Helper()
		resp, err := d.Recv()
		if err != nil {
			t.Fatal(err)
		}
		ack := &discoveryv3.DeltaDiscoveryRequest{ResponseNonce: resp.GetNonce()}
		if refuse {
			ack.ErrorDetail = status.New(codes.Internal, "no").Proto()
		}
		if err := d.Send(ack); err != nil {
			t.Fatal(err)
		}
		secret := new(tlsv3.Secret)
		if err := resp.GetResources()[0].GetResource().UnmarshalTo(secret); err != nil {
			t.Fatal(err)
		}
		return secret.GetValidationContext()
	}
	state := func(what, want string) {
		t.Helper()
		r.status(t, what, func(st *nodeagentpb.GetStatusResponse) bool { return strings.Contains(st.GetRevocation(), want) })
	}
	if v := next(false); v.GetCrl() != nil {
		t.Errorf("lists before there are any: %v", v.GetCrl())
	}
	first := crlOf(t, r.root, 1)
	r.ca.feed.list.Set(&capb.RevocationList{Sequence: 1, Crls: [][]byte{first}})
	if v := next(false); len(v.GetCrl().GetInlineBytes()) == 0 || !v.GetOnlyVerifyLeafCertCrl() {
		t.Errorf("the list is not in %v", v)
	}
	state("one is revoked", "1 certificates are revoked")

	r.ca.feed.list.Set(&capb.RevocationList{Sequence: 2, Crls: [][]byte{crlOf(t, pkitest.NewRoot(t, domain), 2)}})
	state("another's list is rejected", "rejected (")

	// A bundle comes; for its new root there is no list, so that there are none at all.
	second := pkitest.NewRoot(t, domain)
	r.ca.bundle.Set([][]byte{r.root.Cert.Raw, second.Cert.Raw})
	v := next(false)
	for v.GetCrl() != nil { // the bundle may be first
		v = next(false)
	}
	if n := bytes.Count(v.GetTrustedCa().GetInlineBytes(), []byte("BEGIN")); n != 2 {
		t.Errorf("%d roots", n)
	}

	// A proxy that refuses what it got gets the bundle without the lists, and other
	// proxies the lists.
	r.ca.feed.list.Set(&capb.RevocationList{Sequence: 3, Crls: [][]byte{first, crlOf(t, second, 3)}})
	if v := next(true); v.GetCrl() == nil {
		t.Error("no lists for two roots")
	}
	if v := next(false); v.GetCrl() != nil {
		t.Error("what was refused is sent again")
	}
	state("both are in use", "2 certificates are revoked")
	if got := r.metric(t, "writ_nodeagent_crls_rejected"); got != "0" {
		t.Errorf("lists in use count as rejected: %q", got)
	}
}

// TestRevokedLeafIsReplaced: at once, although the lists along with it are broken.
func TestRevokedLeafIsReplaced(t *testing.T) {
	t.Parallel()
	r := newOwnRig(t)
	r.start(t)
	s, err := secretv3.NewSecretDiscoveryServiceClient(r.dial(t)).StreamSecrets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"default"}}); err != nil {
		t.Fatal(err)
	}
	leaf := func() string {
		t.Helper()
		resp, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		secret := new(tlsv3.Secret)
		if err := resp.GetResources()[0].UnmarshalTo(secret); err != nil {
			t.Fatal(err)
		}
		c := secret.GetTlsCertificate()
		pair, err := tls.X509KeyPair(c.GetCertificateChain().GetInlineBytes(), c.GetPrivateKey().GetInlineBytes())
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf.SerialNumber.Text(16)
	}
	old := leaf()
	garbage := make([]byte, 100)
	if _, err := rand.Read(garbage); err != nil {
		t.Fatal(err)
	}
	r.ca.feed.list.Set(&capb.RevocationList{Sequence: 1, Crls: [][]byte{garbage}, Revocations: []*capb.Revocation{{Serial: "00" + old, SpiffeId: spiffeID}}})
	if is := leaf(); is == old {
		t.Errorf("still %s", is)
	}
	r.status(t, "the lists are rejected", func(st *nodeagentpb.GetStatusResponse) bool {
		return strings.HasPrefix(st.GetRevocation(), "rejected (")
	})
	if n := r.ca.count(spiffeID); n != 2 {
		t.Errorf("%d certificates", n)
	}
}

// TestRevocationListsInEnvoy: a real Envoy enforces the lists that the agent hands on,
// for one certificate and no other, also of a client that resumes a session, and does
// without them again.
func TestRevocationListsInEnvoy(t *testing.T) {
	t.Parallel()
	for i, binary := range envoytest.All(t) {
		t.Run([]string{"newest", "oldest"}[i], func(t *testing.T) {
			t.Parallel()
			at := address(t)
			r := newRig(t, time.Hour)
			r.pilot.set(t, "web", listener(t, at, "ROOTCA"))
			r.pilot.set(t, "answer", answer("one"))
			r.start(t)
			r.connected(t)
			r.register(t, startEnvoy(t, r, binary).PID())
			revoked, other := newCaller(t, r, at), newCaller(t, r, at)
			revoked.want(t, "nothing is revoked", "one")
			// TLS 1.3 gives tickets after the handshake; a session is resumed from the
			// second call on.
			resuming := newCaller(t, r, at)
			resuming.config.Certificates = revoked.config.Certificates
			resuming.config.ClientSessionCache = tls.NewLRUClientSessionCache(10)
			resumed := false
			verify := resuming.config.VerifyConnection
			resuming.config.VerifyConnection = func(s tls.ConnectionState) error {
				resumed = resumed || s.DidResume
				return verify(s)
			}
			proctest.Eventually(t, bound, func() error {
				if _, _, _, err := resuming.call(t.Context()); err != nil || !resumed {
					return fmt.Errorf("resumed: %t, %w", resumed, errors.Join(err, errors.New("not yet")))
				}
				return nil
			})
			leaf, err := x509.ParseCertificate(revoked.config.Certificates[0].Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			list := &x509.RevocationList{
				Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour),
				RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: leaf.SerialNumber, RevocationTime: time.Now(), ReasonCode: 1}},
			}
			der, err := r.root.CRL(list)
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			r.ca.feed.list.Set(&capb.RevocationList{Sequence: 1, Crls: [][]byte{der}})
			proctest.Eventually(t, bound, func() error {
				if _, _, _, err := revoked.call(t.Context()); err == nil {
					return errors.New("the revoked certificate opens a connection")
				}
				return nil
			})
			t.Logf("refused after %s", time.Since(began).Round(time.Millisecond))
			if _, _, _, err := resuming.call(t.Context()); err == nil {
				t.Error("the revoked certificate resumes a session")
			}
			other.want(t, "another certificate", "one")
			r.ca.feed.list.Set(&capb.RevocationList{Sequence: 2, Crls: [][]byte{crlOf(t, r.root, 2)}})
			revoked.want(t, "no longer revoked", "one")
		})
	}
}

// TestRevocationListsOutliveAStart: an agent that starts while the authority is away
// hands out, from the first answer on, the lists that it had; and of the file what is
// not right is not used.
func TestRevocationListsOutliveAStart(t *testing.T) {
	t.Parallel()
	r := newOwnRig(t)
	r.start(t)
	r.connected(t)
	list := crlOf(t, r.root, 1)
	r.ca.feed.list.Set(&capb.RevocationList{Sequence: 1, Crls: [][]byte{list}})
	r.status(t, "one is revoked", func(st *nodeagentpb.GetStatusResponse) bool {
		return strings.Contains(st.GetRevocation(), "1 certificates are revoked")
	})
	file := r.path("identity/revocations.pb")
	var kept []byte
	proctest.Eventually(t, bound, func() (err error) {
		kept, err = os.ReadFile(file)
		return err
	})
	again := func() *tlsv3.CertificateValidationContext {
		t.Helper()
		r.agent.Kill()
		r.start(t)
		d, err := secretv3.NewSecretDiscoveryServiceClient(r.dial(t)).DeltaSecrets(t.Context())
		if err == nil {
			err = d.Send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"ROOTCA"}})
		}
		if err != nil {
			t.Fatal(err)
		}
		resp, err := d.Recv()
		if err != nil {
			t.Fatal(err)
		}
		secret := new(tlsv3.Secret)
		if err := resp.GetResources()[0].GetResource().UnmarshalTo(secret); err != nil {
			t.Fatal(err)
		}
		return secret.GetValidationContext()
	}
	r.ca.stop()
	v := again()
	if block, _ := pem.Decode(v.GetCrl().GetInlineBytes()); block == nil || !bytes.Equal(block.Bytes, list) || len(v.GetTrustedCa().GetInlineBytes()) == 0 {
		t.Errorf("the first answer after a start is %v", v)
	}
	kept[len(kept)-1] ^= 1
	if err := os.WriteFile(file, kept, 0o600); err != nil {
		t.Fatal(err)
	}
	if v := again(); v.GetCrl() != nil || len(v.GetTrustedCa().GetInlineBytes()) == 0 {
		t.Errorf("with a damaged file it is %v", v)
	}
}
