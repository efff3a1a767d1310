package translate

import "github.com/writ-mesh/writ/pilot/model"

func (t *Translator) gateway(p *model.Proxy, out *collector) error { return nil }
