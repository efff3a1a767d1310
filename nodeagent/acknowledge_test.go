package nodeagent_test

import (
	"encoding/hex"
	"slices"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"

	"github.com/writ-mesh/writ/internal/pkitest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// The agent acknowledges a bundle when every proxy has accepted it, names who has
// not, and says whose certificates are in use.
func TestBundleIsAcknowledgedWhenEveryProxyHasIt(t *testing.T) {
	t.Parallel()
	r := newOwnRig(t)
	r.start(t)
	r.ca.hears(t, "who may have been connected before the start is waited for", func(req *capb.WatchBundleRequest) bool {
		return req.GetAcknowledged() == 0 && len(req.GetWaiting()) == 1
	})
	d, err := secretv3.NewSecretDiscoveryServiceClient(r.dial(t)).DeltaSecrets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"ROOTCA", "default"}}); err != nil {
		t.Fatal(err)
	}
	has := map[string]bool{}
	var nonce string
	for len(has) < 2 {
		resp, err := d.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, res := range resp.GetResources() {
			has[res.GetName()] = true
		}
		nonce = resp.GetNonce()
		if len(has) < 2 {
			if err := d.Send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: nonce}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := d.Send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: nonce}); err != nil {
		t.Fatal(err)
	}
	own := hex.EncodeToString(r.root.Cert.SubjectKeyId)
	r.ca.hears(t, "the first bundle is acknowledged", func(req *capb.WatchBundleRequest) bool {
		return req.GetAcknowledged() == 1 && len(req.GetWaiting()) == 0 && slices.Equal(req.GetAuthorities(), []string{own})
	})
	r.ca.bundle.Set([][]byte{r.root.Cert.Raw, pkitest.NewRoot(t, domain).Cert.Raw})
	r.ca.hears(t, "the proxy holds up the second", func(req *capb.WatchBundleRequest) bool {
		return req.GetAcknowledged() == 1 && slices.Equal(req.GetWaiting(), []string{proxyID})
	})
	push, err := d.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: push.GetNonce()}); err != nil {
		t.Fatal(err)
	}
	r.ca.hears(t, "the second bundle is acknowledged", func(req *capb.WatchBundleRequest) bool {
		return req.GetAcknowledged() == 2 && len(req.GetWaiting()) == 0
	})
}
