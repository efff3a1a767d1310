package translate

import "github.com/writ-mesh/writ/pilot/model"

func (s *scope) redirected() error { return nil }

func (t *Translator) virtualInbound(p *model.Proxy, ports []*inboundPort, out *collector) error {
	return nil
}
