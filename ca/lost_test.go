package ca

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-mesh/writ/ca/backup"
	"github.com/writ-mesh/writ/ca/ledger"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// After a restore, a certificate that was issued behind the backup is still good, and
// is written down and flagged once its owner calls; others are not.
func TestCertificatesOfALostTimeAreFlagged(t *testing.T) {
	h := start(t, nil)
	before := h.mint(nodeID)
	var saved bytes.Buffer
	if err := backup.Write(h.config.State, &saved); err != nil {
		t.Fatal(err)
	}
	lost := h.mint("spiffe://example.org/writ/node/n2")
	if err := h.stop(); err != nil {
		t.Fatal(err)
	}
	h.config.State = filepath.Join(t.TempDir(), "restored")
	if _, err := backup.Restore(t.Context(), &saved, h.config.State, "", time.Now()); err != nil {
		t.Fatal(err)
	}
	h.run()
	after := h.mint("spiffe://example.org/writ/node/n3")
	_, der := request(t, "")
	flagged := func() (out []*capb.CertificateRecord) {
		t.Helper()
		for _, r := range h.ledger(&capb.ListCertificatesRequest{}) {
			if r.GetRequester() == unrecorded {
				out = append(out, r)
			}
		}
		return out
	}
	if got := flagged(); len(got) > 0 {
		t.Fatalf("flagged before anybody called: %v", got)
	}
	for range 2 {
		for _, svid := range []*x509svid.SVID{before, lost, after, lost} {
			if _, err := h.as(svid).Renew(t.Context(), &capb.RenewRequest{Csr: der}); err != nil {
				t.Fatal(err)
			}
		}
		got := flagged()
		if len(got) != 1 || got[0].GetSpiffeId() != lost.ID.String() || got[0].GetSerial() != leafSerial(lost.Certificates[0].SerialNumber.Text(16)) ||
			!got[0].GetNotAfter().AsTime().Equal(lost.Certificates[0].NotAfter) {
			t.Fatalf("flagged: %v", got)
		}
		h.restart()
	}
	restored := 0
	for _, r := range h.entries() {
		if e, err := r.Entry(); err != nil {
			t.Fatal(err)
		} else if e.Kind == ledger.Restored {
			restored++
		}
	}
	if restored != 1 {
		t.Errorf("%d entries about a restore, want 1", restored)
	}
}
