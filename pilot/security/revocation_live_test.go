package security

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/pilot/model"
)

// TestRevokedLive: the one certificate, or all of the identity, and nobody else's; for
// callers without one nothing changes.
func TestRevokedLive(t *testing.T) {
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
			return inbound{http: out}
		}
		own := model.RevokedCertificate{Serial: "0a1b", SPIFFEID: sleep, SHA256: hex.EncodeToString(digest[:])}
		others := make([]model.RevokedCertificate, 2*maxNamedCertificates)
		for i := range others {
			others[i] = model.RevokedCertificate{Serial: fmt.Sprintf("%04x", 0x100+i), SPIFFEID: sleep, SHA256: fmt.Sprintf("%064x", i)}
		}
		inbounds := map[string]inbound{
			"nothing": revoked(nil), "serial": revoked([]model.RevokedCertificate{own}), "identity": revoked(nil, curlFoo, sleep),
			"others": revoked(others, curlFoo), "newest": revoked(append(others, own)), "oldest": revoked(append([]model.RevokedCertificate{own}, others...)),
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
