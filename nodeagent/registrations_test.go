package nodeagent_test

import (
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/nodeagent/latest"
	"github.com/writ-mesh/writ/nodeagent/statefile"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
	nodeagentpb "github.com/writ-mesh/writ/proto/writ/nodeagent/v1"
)

// fakeRegistrations hands out a full list at each change, unless the agent has it.
type fakeRegistrations struct {
	capb.UnimplementedNodeRegistrationsServer
	list   latest.Value[[]*capb.Registration]
	digest latest.Value[[]byte] // of the newest caller
}

// WatchRegistrations implements capb.NodeRegistrationsServer.
func (f *fakeRegistrations) WatchRegistrations(req *capb.WatchRegistrationsRequest, s grpc.ServerStreamingServer[capb.RegistrationUpdate]) error {
	f.digest.Set(req.GetDigest())
	for {
		list, changed := f.list.Get()
		if err := s.Send(&capb.RegistrationUpdate{Full: true, Put: list, Complete: true}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}

const billingID = "spiffe://cluster.local/ns/default/sa/billing"

// TestRegisteredWorkload: whoever has the facts of a registration gets its
// certificate, also when it asks first and if the authority is away at the agent's
// next start; and it gets no configuration of the mesh.
func TestRegisteredWorkload(t *testing.T) {
	t.Parallel()
	r := newRig(t, 0)
	r.start(t)
	r.connected(t)
	self, err := filepath.EvalSymlinks("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	stream, err := secretv3.NewSecretDiscoveryServiceClient(r.dial(t)).DeltaSecrets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"ROOTCA"}}); err != nil {
		t.Fatal(err)
	}
	// It waits, and is known then.
	reg := &capb.Registration{Id: "r1", SpiffeId: billingID, Facts: []string{fmt.Sprint("unix:uid:", os.Getuid()), "unix:path:" + self}}
	r.ca.registrations.list.Set([]*capb.Registration{reg})
	if resp, err := stream.Recv(); err != nil || len(resp.GetResources()) != 1 {
		t.Fatalf("%v, %v", resp, err)
	}

	explained, err := r.admin.ExplainIdentity(t.Context(), &nodeagentpb.ExplainIdentityRequest{Pid: int32(os.Getpid())})
	if err != nil || explained.GetSpiffeId() != billingID || explained.GetBy() != "registration r1" || !slices.Contains(explained.GetFacts(), "unix:path:"+self) {
		t.Errorf("explained as %v, %v", explained, err)
	}
	_, err = r.admin.ExplainIdentity(t.Context(), &nodeagentpb.ExplainIdentityRequest{Pid: 1 << 30})
	if status.Code(err) != codes.NotFound {
		t.Errorf("no process: %v", err)
	}

	ads, err := discoveryv3.NewAggregatedDiscoveryServiceClient(r.dial(t)).DeltaAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ads.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("configuration: %v", err)
	}

	// The list is on disk a second later; then the authority goes and the agent is
	// killed.
	proctest.Eventually(t, bound, func() error {
		data, err := statefile.Read(filepath.Join(r.dir, "state", "identities"), "WRITIDS1", 1<<20)
		if err != nil {
			return err
		}
		list, err := io.ReadAll(flate.NewReader(bytes.NewReader(data)))
		if err == nil && !bytes.Contains(list, []byte(billingID)) {
			err = errors.New("the registration is not on disk")
		}
		return err
	})
	r.ca.stop()
	r.agent.Kill()
	r.start(t)
	explained, err = r.admin.ExplainIdentity(t.Context(), &nodeagentpb.ExplainIdentityRequest{Pid: int32(os.Getpid())})
	if err != nil || explained.GetSpiffeId() != billingID {
		t.Errorf("after a restart without the authority: %v, %v", explained, err)
	}

	// It is dropped: the stream that it has now ends.
	stream, err = secretv3.NewSecretDiscoveryServiceClient(r.dial(t)).DeltaSecrets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"ROOTCA"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	r.ca.registrations.list.Set(nil)
	r.ca.start(t)
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("after it was dropped: %v", err)
	}
}
