package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-mesh/writ/pilot/model"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// fetchedKeys puts keys into the rules that say where they are, as pilot does for
// proxies.
func fetchedKeys(mesh *model.Mesh, sets map[string]string) {
	for _, ra := range mesh.RequestAuthentications {
		for _, rule := range ra.Spec.GetJwtRules() {
			if at, ok := mesh.KeyPlace(ra.Namespace, rule); ok && sets[at.Key()] != "" {
				rule.Jwks, rule.JwksUri = sets[at.Key()], ""
			}
		}
	}
}

// printKeySets says what pilot knows of the keys of token issuers.
func printKeySets(out io.Writer, all []*pilotpb.KeySetStatus, now time.Time) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintln(out, "\nTOKEN ISSUERS (whose keys pilot fetches)")
	for _, k := range all {
		from := k.GetUri()
		if k.GetEntry() != "" {
			from += " (where ServiceEntry " + k.GetEntry() + " says)"
		}
		parts := []string{"no keys yet from " + from}
		if k.GetKeys() > 0 {
			parts = []string{
				fmt.Sprintf("%s from %s", count(int(k.GetKeys()), "key"), from),
				"seen " + ago(k.GetFetchedAt(), now) + " ago", "the same for " + ago(k.GetChangedAt(), now),
			}
		}
		next := "next look"
		if k.GetError() != "" {
			parts = append(parts, fmt.Sprintf("cannot be fetched for %s: %s", ago(k.GetFailingSince(), now), k.GetError()))
			next = "next try"
		}
		if k.GetNextTryAt() != nil {
			parts = append(parts, next+" in "+rounded(max(0, k.GetNextTryAt().AsTime().Sub(now))))
		}
		fmt.Fprintf(out, "  %s: %s\n", strings.Join(k.GetIssuers(), ", "), strings.Join(parts, "; "))
	}
}

func ago(t *timestamppb.Timestamp, now time.Time) string {
	return rounded(max(0, now.Sub(t.AsTime())))
}

func rounded(d time.Duration) string {
	if d < time.Minute {
		return d.Round(time.Second).String()
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}
