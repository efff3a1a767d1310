package model_test

import (
	"strings"
	"testing"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// TestServes: whose servers a gateway proxy opens.
func TestServes(t *testing.T) {
	gateway := func(namespace, name, istio string) *model.Gateway {
		return &model.Gateway{Meta: model.Meta{Ref: model.Ref{Namespace: namespace, Name: name}}, Spec: &networking.Gateway{Selector: map[string]string{"istio": istio}}}
	}
	all := []*model.Gateway{gateway("aaa", "shop", "ingress"), gateway("default", "shop", "ingress"), gateway("default", "other", "ingress"), gateway("root", "both", "x"), gateway("aaa", "both", "x")}
	for _, tc := range []struct {
		name  string
		proxy model.Proxy
		want  string
	}{
		{"the one that it is run for", model.Proxy{Name: "shop", Gateway: "default/shop", Labels: map[string]string{"istio": "ingress"}}, "default/shop"},
		{"no other when that is gone", model.Proxy{Name: "shop", Gateway: "gone/shop", Labels: map[string]string{"istio": "ingress"}}, ""},
		{"by its name: one", model.Proxy{Name: "shop", Labels: map[string]string{"istio": "ingress"}}, "aaa/shop"},
		{"by its name: the root namespace's", model.Proxy{Name: "both", Labels: map[string]string{"istio": "x"}}, "root/both"},
		{"all that select it", model.Proxy{Name: "ingressgateway", Labels: map[string]string{"istio": "ingress"}}, "aaa/shop default/shop default/other"},
		{"none that does not", model.Proxy{Name: "shop", Gateway: "default/shop", Labels: map[string]string{"istio": "y"}}, ""},
	} {
		var got []string
		for _, g := range tc.proxy.Serves(all, "root") {
			got = append(got, g.Namespace+"/"+g.Name)
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
}
