package pilot

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/proctest"
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
	if got.GetRevision() != 1 || string(got.GetFiles()["a.yaml"]) != text {
		t.Errorf("got %v", got)
	}
}
