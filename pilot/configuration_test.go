package pilot

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/model"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// TestConfigurationInForce: what explain is told is what is served, and nothing before
// anything is.
func TestConfigurationInForce(t *testing.T) {
	const text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n"
	f := newFixture(t, "", map[string]string{"a.yaml": text})
	s := &configurationService{pilot: f.Pilot}
	var got *pilotpb.GetConfigurationResponse
	proctest.Eventually(t, 10*time.Second, func() (err error) {
		got, err = s.GetConfiguration(t.Context(), &pilotpb.GetConfigurationRequest{})
		if status.Code(err) != codes.OK && status.Code(err) != codes.Unavailable {
			t.Fatal(err)
		}
		if err != nil {
			return fmt.Errorf("before anything is in force: %w", err)
		}
		return nil
	})
	if got.GetRevision() != 1 || string(got.GetFiles()["a.yaml"]) != text || len(got.GetLists())+len(got.GetRevokedIdentities()) > 0 {
		t.Errorf("got %v", got)
	}
	f.setRevoked(&model.Revoked{
		Sequence: 3, Identities: []model.RevokedIdentity{{SPIFFEID: "spiffe://cluster.local/ns/a/sa/b"}},
		Certificates: []model.RevokedCertificate{{Serial: "0a", SPIFFEID: "spiffe://cluster.local/ns/a/sa/c"}},
	})
	f.mu.Lock()
	f.fetched = map[string]model.Fetched{"a/list": {Entries: []string{"10.0.0.1"}, Expired: true}}
	f.compile(f.current.mesh, time.Now())
	f.mu.Unlock()
	got, err := s.GetConfiguration(t.Context(), &pilotpb.GetConfigurationRequest{})
	if err != nil || len(got.GetRevokedIdentities()) != 1 || got.GetRevokedCertificates()[0].GetSpiffeId() != "spiffe://cluster.local/ns/a/sa/c" ||
		got.GetLists()["a/list"].GetEntries()[0] != "10.0.0.1" || !got.GetLists()["a/list"].GetExpired() {
		t.Errorf("besides the files: %v, %v", got, err)
	}
}
